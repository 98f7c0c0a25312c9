"""Write component tensors into one file, or into shards of at most a given size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from slt_compress.artifacts.manifest import SHARD_NAME, SPARSE_INDEX, SPARSE_WEIGHTS
from slt_compress.errors import ArtifactError
from slt_compress.storage.files import json_text, update_digest, write_json, write_safetensors


class ShardWriter:
    """Writes components into a folder, never holding more of them than one shard.

    One shard becomes `weights.slt.safetensors` with the manifest in its header; several get an
    index, which then holds the manifest.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._held: dict[str, Tensor] = {}
        self._nbytes = 0
        self._written: list[list[str]] = []
        self._keys: set[str] = set()
        self._digest = hashlib.sha256()

    def add(self, components: Mapping[str, Tensor]) -> None:
        """Add the components of one entry; they stay together in a shard.

        Entries must be added in the order of their names, which is the order of the hash.

        Raises:
            ArtifactError: a key was added before.
        """
        nbytes = sum(tensor.nbytes for tensor in components.values())
        if self._held and self._nbytes + nbytes > self._limit:
            self._flush()
        for key in sorted(components):
            if key in self._keys:
                raise ArtifactError(f"two tensors of the model would both be stored as {key}")
            self._keys.add(key)
            self._held[key] = components[key]
            update_digest(self._digest, key, components[key])
        self._nbytes += nbytes

    @property
    def is_sharded(self) -> bool:
        """Whether there is more than one file, once all tensors were added."""
        return bool(self._written)

    def close(self, manifest: Mapping[str, object]) -> None:
        """Write the last shard, and `manifest` with the hash of all components."""
        hashed = {**manifest, "hash": self._digest.hexdigest()}
        if not self._written:
            write_safetensors(self._folder / SPARSE_WEIGHTS, self._held, hashed)
            return
        self._flush()
        count = len(self._written)
        placed: dict[str, str] = {}
        for number, keys in enumerate(self._written, 1):
            name = SHARD_NAME.format(number, count)
            (self._folder / _draft_name(number)).rename(self._folder / name)
            placed |= dict.fromkeys(keys, name)
        metadata = {"slt": json_text(hashed)}
        write_json(self._folder / SPARSE_INDEX, {"metadata": metadata, "weight_map": placed})

    def _flush(self) -> None:
        self._written.append(list(self._held))
        write_safetensors(self._folder / _draft_name(len(self._written)), self._held)
        self._held, self._nbytes = {}, 0


def _draft_name(number: int) -> str:
    """The name of a shard until their number is known."""
    return f"shard-{number}.safetensors"
