"""The stored tensors of a sparse artifact: read, hashed, matched with their entries, decoded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from slt_compress.artifacts.entries import Entry
from slt_compress.artifacts.formats import CODECS, is_plain, part_key
from slt_compress.artifacts.manifest import SPARSE_WEIGHTS, Artifact
from slt_compress.errors import ArtifactError
from slt_compress.masks import count_kept
from slt_compress.storage.files import read_safetensors, update_digest
from slt_compress.storage.manifests import Manifest, is_file_name


def stored_parts(artifact: Artifact) -> dict[str, dict[str, Tensor]]:
    """The parts of every entry, their hash checked; they still share memory with the file.

    Raises:
        ArtifactError: a file is damaged, a part is missing, left over or not what was written.
    """
    folder, manifest = artifact.path, artifact.manifest
    if manifest.where.name == SPARSE_WEIGHTS:
        stored = read_safetensors(manifest.where, ArtifactError)
    else:
        stored = _shards(folder, manifest.where, artifact.shards)
    parts = split(stored, artifact.entries, manifest)
    digest = hashlib.sha256()
    for name in sorted(parts):
        for key in sorted(part_key(name, part) for part in parts[name]):
            update_digest(digest, key, stored[key])
    if digest.hexdigest() != manifest.text("hash"):
        raise ArtifactError(f"{folder} was changed or damaged: its tensors do not have their hash")
    return parts


def split(
    stored: Mapping[str, Tensor], entries: Mapping[str, Entry], manifest: Manifest
) -> dict[str, dict[str, Tensor]]:
    """Match every entry with its parts; nothing may be missing and nothing left over.

    Raises:
        ArtifactError: the entries are not those of the stored tensors.
    """
    keys = {
        name: {part: part_key(name, part) for part in CODECS[entry.format].parts}
        for name, entry in entries.items()
    }
    expected = [key for parts in keys.values() for key in parts.values()]
    if len(set(expected)) != len(expected) or set(expected) != stored.keys():
        odd = sorted(set(expected) ^ stored.keys())
        raise manifest.damaged(f"its entries and the stored tensors disagree on {odd[:3]}")
    return {
        name: {part: stored[key] for part, key in parts.items()} for name, parts in keys.items()
    }


@contextmanager
def errors_of(folder: Path, name: str) -> Iterator[None]:
    """Name the folder and the entry in every error of the block."""
    try:
        yield
    except ArtifactError as cause:
        raise ArtifactError(f"{folder} is damaged: {name} {cause}") from cause


def decode(
    parts: Mapping[str, Tensor], entry: Entry, *, masked: bool
) -> tuple[Tensor, Tensor | None]:
    """The tensor of one entry, in memory of its own, and the mask of a site if it is `masked`.

    A site that is stored dense keeps everything.

    Raises:
        ArtifactError: the parts do not describe the tensor, or it has another count.
    """
    codec, stored = CODECS[entry.format], entry.stored_dtype
    mask = codec.decode_mask(parts, shape=entry.shape)
    tensor = codec.decode(parts, shape=entry.shape, dtype=stored, mask=mask)
    if stored is not entry.dtype:
        tensor = tensor.to(entry.dtype)
    elif is_plain(codec):
        # A copy of what is mapped: the model must not change when the file does, and with ordinary
        # alignment its arithmetic is that of any other model.
        tensor = tensor.clone()
    if not masked or entry.kept is None:
        return tensor, None
    return tensor, _counted(mask, entry.kept, entry.shape)


def _counted(mask: Tensor | None, kept: int, shape: tuple[int, ...]) -> Tensor:
    """The mask of a site, after its count was compared with the recorded one."""
    if mask is None:
        if kept != math.prod(shape):
            raise ArtifactError(
                f"is stored whole, but keeps {str(kept)[:40]} of {math.prod(shape):,}"
            )
        return torch.ones(shape, dtype=torch.bool)
    if kept != count_kept(mask):
        raise ArtifactError(f"does not keep its recorded count, {str(kept)[:40]}")
    return mask


def _shards(folder: Path, index: Path, placed: object) -> dict[str, Tensor]:
    if not isinstance(placed, dict):
        raise ArtifactError(f"{index} has no object 'weight_map'; the artifact is damaged")
    stored: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in placed.values()}):
        for key, tensor in _shard(folder, index, name):
            if placed.get(key) != name:
                raise ArtifactError(
                    f"{folder / name} holds {key}, which {index.name} puts elsewhere"
                )
            stored[key] = tensor
    if stored.keys() != placed.keys():
        missing = sorted(placed.keys() - stored.keys())
        raise ArtifactError(f"{folder} lacks {missing[0]}, which {index.name} lists")
    return stored


def _shard(folder: Path, index: Path, name: str) -> Iterator[tuple[str, Tensor]]:
    if not is_file_name(name) or not name.endswith(".safetensors"):
        raise ArtifactError(f"{index} names the shard {name[:80]!r}, which is not a file beside it")
    yield from read_safetensors(folder / name, ArtifactError).items()
