"""The files beside the weights that users and data preparation need, copied from the origin."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path

_WANTED = (
    "tokenizer*",
    "vocab*",
    "merges*.txt",
    "special_tokens*.json",
    "added_tokens*.json",
    "spiece*",
    "sentencepiece*",
    "*.model",
    "*.tiktoken",
    "*preprocessor_config.json",
    "processor_config.json",
    "feature_extractor*.json",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.py")


def copy_companions(source: Path | None, target: Path) -> list[str]:
    """Copy tokenizer, processor, generation and licence files that `target` does not have yet.

    Weights and code are never copied. Returns the names of the copied files.
    """
    if source is None:
        return []
    copied = []
    for file in sorted(source.iterdir()):
        if file.is_file() and _is_companion(file.name) and not (target / file.name).exists():
            shutil.copyfile(file, target / file.name)
            copied.append(file.name)
    return copied


def _is_companion(name: str) -> bool:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return matches(_WANTED) and not matches(_WEIGHTS)
