"""Artifacts of the format `mask`: which weights survive, and nothing that their origin has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from slt_compress.artifacts.formats import decode_masks, encode_masks
from slt_compress.artifacts.manifest import MASK_FORMAT, SPARSE_WEIGHTS
from slt_compress.artifacts.reading import described, expect_probe, open_manifest
from slt_compress.errors import ArtifactError
from slt_compress.masks import Masks
from slt_compress.storage.files import read_safetensors, sha256_tensors
from slt_compress.storage.manifests import Manifest

STREAM = "masks"
BUFFER, STORED = "buffer/", "stored/"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskArtifact:
    """A mask on its own, still packed.

    Attributes:
        path: the folder.
        entries: per site `shape`, `dtype`, `kept`, and `flips` where it has any.
        buffers: buffers that the search changed.
        stored: tensors of a random init that its seed does not give.
        manifest: the whole manifest.
    """

    path: Path
    entries: Mapping[str, Mapping[str, Any]]
    buffers: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    manifest: Mapping[str, Any]
    _stream: Tensor

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every site, as the folder says."""
        return {name: tuple(self.entries[name]["shape"]) for name in sorted(self.entries)}

    def masks(self) -> Masks:
        """Unpack the masks; whoever calls has seen that their origin has these shapes.

        Raises:
            ArtifactError: the masks are damaged.
        """
        shapes = self.shapes
        flipped = [name for name in shapes if self.entries[name].get("flips")]
        for name in flipped:  # before memory is made in this size
            if self.entries[name]["kept"] > math.prod(shapes[name]):
                raise ArtifactError(f"{self.path} is damaged: {name} does not keep its count")
        try:
            found = decode_masks(
                self._stream,
                [*shapes.values(), *((self.entries[name]["kept"],) for name in flipped)],
            )
        except ArtifactError as cause:
            raise ArtifactError(f"{self.path} is damaged: it {cause}") from cause
        masks = dict(zip(shapes, found, strict=False))
        for name, mask in masks.items():
            if self.entries[name]["kept"] != int(mask.count_nonzero()):
                raise ArtifactError(f"{self.path} is damaged: {name} does not keep its count")
        flips: dict[str, Tensor] = {}
        for name, signs in zip(flipped, found[len(shapes) :], strict=True):
            if self.entries[name]["flips"] != int(signs.count_nonzero()):
                raise ArtifactError(f"{self.path} is damaged: {name} does not flip its count")
            flips[name] = masks[name].clone().masked_scatter_(masks[name], signs)
        return Masks(masks, flips)


def pack_masks(masks: Masks) -> Tensor:
    """The masks of all sites in the order of their names, then the flips of those that have any.

    Flips are over the kept weights alone, row-major.
    """
    names = sorted(masks)
    signs = (masks.flips[name][masks[name]] for name in names if name in masks.flips)
    return encode_masks(chain((masks[name] for name in names), signs))


def read_mask_artifact(path: str | Path) -> MaskArtifact:
    """Read an artifact of the format `mask`, checking its hash.

    Raises:
        ArtifactError: it is of another format, damaged or from a newer version.
    """
    folder = Path(path)
    manifest = open_manifest(folder)
    artifact = described(folder, manifest)
    if artifact.format != MASK_FORMAT or manifest.where.name != SPARSE_WEIGHTS:
        raise ArtifactError(f"{folder} does not hold a mask in {SPARSE_WEIGHTS}")
    expect_probe(folder, manifest)
    stored = read_safetensors(manifest.where, ArtifactError)
    if sha256_tensors(stored) != manifest.text("hash"):
        raise ArtifactError(f"{folder} was changed or damaged: its tensors do not have their hash")
    # copies: what comes out must not change when the file does
    buffers = _take(stored, BUFFER, manifest, "buffers")
    kept = _take(stored, STORED, manifest, "stored")
    if stored.keys() != {STREAM}:
        raise manifest.damaged(f"it holds {sorted(stored)[:3]} where {STREAM} is expected")
    return MaskArtifact(
        path=folder, entries=artifact.entries, buffers=buffers, stored=kept,
        manifest=manifest.values, _stream=stored[STREAM].clone(),
    )  # fmt: skip


def _take(
    tensors: dict[str, Tensor], prefix: str, manifest: Manifest, listed: str
) -> dict[str, Tensor]:
    """Take the tensors with a prefix out of `tensors`; they have to be those that are listed."""
    names = [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
    if sorted(names) != sorted(manifest.names(listed)):
        raise manifest.damaged(f"its {listed} are not those that are stored")
    return {name: tensors.pop(prefix + name).clone() for name in names}
