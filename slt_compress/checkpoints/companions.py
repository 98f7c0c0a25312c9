"""The files beside the weights that users and data preparation need, copied from the origin."""

from __future__ import annotations

import fnmatch
import shutil
from pathlib import Path

# Every name that a tokenizer of transformers 5 asks for is among these.
_TOKENIZERS = (
    "tokenizer*",
    "*vocab*",
    "merges*.txt",
    "special_tokens*.json",
    "added_tokens*.json",
    "spiece*",
    "sentencepiece*",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.tokenizer",
    "*.codes",
    "*.bpe",
    "byte_maps.json",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "normalizer.json",
)
_WANTED = (
    *_TOKENIZERS,
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


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of this name belongs to a tokenizer."""
    return _matches(name, _TOKENIZERS) and not _matches(name, _WEIGHTS)


def _is_companion(name: str) -> bool:
    return _matches(name, _WANTED) and not _matches(name, _WEIGHTS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
