"""Hashes of batches, which tell a changed data set from the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from slt_compress.storage.files import update_digest


def batch_hash(batch: Any) -> str:
    """A hash of the tensors of a batch, which tells a changed data set from the same one."""
    digest = hashlib.sha256()
    for name, tensor in _leaves(batch, ""):
        update_digest(digest, name, tensor)
    return digest.hexdigest()


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _leaves(entry, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            yield from _leaves(entry, f"{name}.{index}")
