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
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "LICENSE*",
    "NOTICE*",
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.py")


def copy_companions(source: Path | None, target: Path) -> list[str]:
    """Copy tokenizer, processor, generation and licence files that `target` does not have yet.

    Weights and code are never copied, nor what a link outside of `source` leads to. Returns the
    names of the copied files.
    """
    if source is None:
        return []
    copied = []
    for file in sorted(source.iterdir()):
        taken = (target / file.name).exists()
        if is_companion(file.name) and not taken and is_own_file(file, source):
            shutil.copyfile(file, target / file.name)
            copied.append(file.name)
    return copied


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of this name belongs to a tokenizer."""
    return _matches(name, _TOKENIZERS) and not _matches(name, _WEIGHTS)


def is_own_file(file: Path, folder: Path) -> bool:
    """Whether a path in a folder is a regular file of that folder, and no link that leaves it.

    A snapshot in the hub's cache has its files in `blobs`, beside the folder of snapshots.
    """
    if not file.is_file():
        return False
    home, target = folder.resolve(), file.resolve()
    blobs = home.parent.parent / "blobs"
    in_cache = home.parent.name == "snapshots" and target.parent == blobs
    return target.is_relative_to(home) or in_cache


def is_companion(name: str) -> bool:
    """Whether a file of this name says how data is prepared, or is a licence."""
    return _matches(name, _WANTED) and not _matches(name, _WEIGHTS)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
