"""Artifacts of the format `mask`: which weights survive, and nothing that their origin has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import Tensor

from slt_compress.artifacts.beside import check_beside
from slt_compress.artifacts.formats import MASK_FORMAT, decode_masks, encode_masks
from slt_compress.artifacts.manifest import SPARSE_WEIGHTS, Artifact
from slt_compress.artifacts.reading import as_artifact, expect_probe
from slt_compress.errors import ArtifactError
from slt_compress.masks import Masks, count_kept
from slt_compress.storage.files import read_safetensors, sha256_tensors
from slt_compress.storage.manifests import Manifest

STREAM = "masks"
BUFFER, STORED, TUNED = "buffer/", "stored/", "tuned/"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskArtifact:
    """A mask on its own, still packed.

    Attributes:
        artifact: the folder; its entries are the sites.
        buffers: buffers that the search changed.
        stored: tensors of a random init that its seed does not give.
        tuned: parameters that were trained beside the mask.
    """

    artifact: Artifact
    buffers: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    tuned: Mapping[str, Tensor]
    _stream: Tensor

    @property
    def path(self) -> Path:
        """The folder."""
        return self.artifact.path

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every site, as the folder says."""
        entries = self.artifact.entries
        return {name: entries[name].shape for name in sorted(entries)}

    def masks(self) -> Masks:
        """Unpack the masks. The caller has checked that the origin has weights of these shapes.

        Raises:
            ArtifactError: the masks are damaged.
        """
        shapes, entries = self.shapes, self.artifact.entries
        flipped = [name for name in shapes if entries[name].flips]
        kept = {name: entries[name].kept or 0 for name in shapes}
        for name in flipped:  # before memory of this size is allocated
            self._expect(kept[name] <= math.prod(shapes[name]), f"{name} does not keep its count")
        try:
            decoded = decode_masks(
                self._stream, [*shapes.values(), *((kept[name],) for name in flipped)]
            )
        except ArtifactError as cause:
            raise ArtifactError(f"{self.path} is damaged: it {cause}") from cause
        masks = dict(zip(shapes, decoded, strict=False))
        for name, mask in masks.items():
            self._expect(kept[name] == count_kept(mask), f"{name} does not keep its count")
        flips: dict[str, Tensor] = {}
        for name, signs in zip(flipped, decoded[len(shapes) :], strict=True):
            self._expect(
                entries[name].flips == count_kept(signs), f"{name} does not flip its count"
            )
            flips[name] = masks[name].clone().masked_scatter_(masks[name], signs)
        return Masks(masks, flips)

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise ArtifactError(f"{self.path} is damaged: {otherwise}")


def pack_masks(masks: Masks) -> Tensor:
    """Encode the masks of all sites in the order of their names, then the flips of signed ones.

    Flips cover the kept weights alone, row-major.
    """
    names = sorted(masks)
    signs = (masks.flips[name][masks[name]] for name in names if name in masks.flips)
    return encode_masks(chain((masks[name] for name in names), signs))


def read_mask_artifact(path: Artifact | str | Path) -> MaskArtifact:
    """Read an artifact of the format `mask`, checking its hash.

    Raises:
        ArtifactError: it is of another format, damaged or from a newer version.
    """
    artifact = as_artifact(path)
    folder, manifest = artifact.path, artifact.manifest
    if artifact.format != MASK_FORMAT or manifest.where.name != SPARSE_WEIGHTS:
        raise ArtifactError(f"{folder} does not hold a mask in {SPARSE_WEIGHTS}")
    expect_probe(artifact)
    stored = read_safetensors(manifest.where, ArtifactError)
    if sha256_tensors(stored) != manifest.text("hash"):
        raise ArtifactError(f"{folder} was changed or damaged: its tensors do not have their hash")
    check_beside(artifact)
    # Copies, as what is read must not change when the file does.
    buffers = _take(stored, BUFFER, manifest, "buffers")
    kept = _take(stored, STORED, manifest, "stored")
    tuned = _take(stored, TUNED, manifest, "tuned") if "tuned" in manifest.values else {}
    if stored.keys() != {STREAM}:
        raise manifest.damaged(f"it holds {sorted(stored)[:3]} where {STREAM} is expected")
    return MaskArtifact(
        artifact=artifact, buffers=buffers, stored=kept, tuned=tuned,
        _stream=stored[STREAM].clone(),
    )  # fmt: skip


def _take(
    tensors: dict[str, Tensor], prefix: str, manifest: Manifest, listed: str
) -> dict[str, Tensor]:
    """Take the tensors with a prefix out of `tensors`; they must be those that are listed."""
    names = [key.removeprefix(prefix) for key in tensors if key.startswith(prefix)]
    if sorted(names) != sorted(manifest.names(listed)):
        raise manifest.damaged(f"its {listed} are not those that are stored")
    return {name: tensors.pop(prefix + name).clone() for name in names}
