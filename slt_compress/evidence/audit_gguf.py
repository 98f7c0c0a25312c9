"""GGUF files: a header read without trust, and the blocks that weights are quantised in."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from slt_compress.errors import SourceError
from slt_compress.evidence.audit_gguf_blocks import BLOCKS, Block, block_of
from slt_compress.evidence.audit_tensors import StoredModel, StoredWeight

_MAGIC = b"GGUF"
_LIMIT = 1 << 28  # bytes of a header; tokenizers take a few megabytes
_TYPES: Mapping[int, str] = MappingProxyType(
    {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
     10: "<Q", 11: "<q", 12: "<d"}
)  # fmt: skip
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One tensor: sizes with the fastest first, as the file has them, and where it lies."""

    sizes: tuple[int, ...]
    kind: int
    offset: int


class _Header:
    """Numbers and texts of a header, one after the other, never beyond the end of the file."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, min(size, _LIMIT)

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            raise ValueError("its header goes beyond its end")
        self._left -= count
        return self._stream.read(count)

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A value of the metadata; arrays are passed over, as no question here needs one."""
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY and depth < 4:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _TYPES:
                self.take(count * struct.calcsize(_TYPES[inner]))
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
            return None
        if kind not in _TYPES:
            raise ValueError(f"its metadata has the type {kind}")
        return self.number(_TYPES[kind])


def read_gguf(path: Path) -> StoredModel:
    """The weights of a GGUF file.

    Raises:
        SourceError: it is not one, or is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            facts, entries, start = _parse(_Header(stream, size), stream)
    except (OSError, ValueError, struct.error) as cause:
        raise SourceError(f"{path} is not a sound GGUF file: {cause}") from cause
    weights = {}
    for name, entry in entries.items():
        block = block_of(entry.kind)
        read: Callable[[], Tensor] = partial(_read, path, name, entry, block, start)
        label = block.name if block is not None else f"GGUF type {entry.kind}"
        weights[name] = StoredWeight(encoding=label, read=read)
    return StoredModel(kind="GGUF", weights=weights, heads=_heads(facts))


def _parse(header: _Header, stream: BinaryIO) -> tuple[dict[str, Any], dict[str, _Entry], int]:
    if header.take(4) != _MAGIC:
        raise ValueError("it does not start with GGUF")
    version = header.number("<I")
    if version not in (2, 3):
        raise ValueError(f"its version is {version}; 2 and 3 are known")
    count, keys = header.number("<Q"), header.number("<Q")
    facts = {}
    for _ in range(keys):
        key = header.text()
        facts[key] = header.value(header.number("<I"))
    entries = {}
    for _ in range(count):
        name, dims = header.text(), header.number("<I")
        if dims > 4:
            raise ValueError(f"{name[:60]} has {dims} dimensions")
        sizes = tuple(header.number("<Q") for _ in range(dims))
        entries[name] = _Entry(sizes=sizes, kind=header.number("<I"), offset=header.number("<Q"))
    alignment = facts.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise ValueError(f"its alignment is {str(alignment)[:20]}")
    return facts, entries, -(-stream.tell() // alignment) * alignment


def _heads(facts: Mapping[str, Any]) -> tuple[int, ...]:
    """Numbers of heads whose rows the converter interleaved (queries and keys of Llamas)."""
    architecture = str(facts.get("general.architecture", ""))
    found = [
        facts.get(f"{architecture}.attention.{key}") for key in ("head_count", "head_count_kv")
    ]
    return tuple(dict.fromkeys(n for n in found if type(n) is int and n > 0))


def _read(path: Path, name: str, entry: _Entry, block: Block | None, start: int) -> Tensor:
    """The weight in its own shape, float32.

    Raises:
        SourceError: it lies beyond the end of the file, or in blocks that are not known here.
    """
    if block is None:
        known = ", ".join(known.name for known in BLOCKS.values())
        raise SourceError(
            f"{path}: {name} is stored as GGUF type {entry.kind}; read are {known}, and what the "
            "package gguf knows, where that is installed"
        )
    count = math.prod(entry.sizes)
    if count % block.weights or (entry.sizes and entry.sizes[0] % block.weights):
        raise SourceError(f"{path}: {name} {entry.sizes} is not in blocks of {block.weights}")
    nbytes = count // block.weights * block.nbytes
    if start + entry.offset + nbytes > path.stat().st_size:
        raise SourceError(f"{path} is cut short: {name} lies beyond its end")
    with path.open("rb") as stream:
        stream.seek(start + entry.offset)
        data = np.frombuffer(stream.read(nbytes), dtype=np.uint8).reshape(-1, block.nbytes)
    values = block.decode(data).astype(np.float32, copy=False).reshape(tuple(reversed(entry.sizes)))
    return torch.from_numpy(np.array(values, order="C"))
