"""Read a shrunk artifact: what was cut, and the masks and buffers that prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from slt_compress.artifacts.manifest import PROOF, SHRUNK, Artifact
from slt_compress.artifacts.shrinking import Shrunk, parse_shrunk, resize_
from slt_compress.artifacts.state import own_shapes
from slt_compress.errors import ArtifactError
from slt_compress.masks import Masks, pack_bits, unpack_bits
from slt_compress.storage.files import read_safetensors, sha256_tensors
from slt_compress.storage.manifests import Manifest

_BUFFER, _FLIP, _TUNED = "buffer/", ".flip", "tuned/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a shrunk artifact is proved from, beside its origin.

    Attributes:
        shrunk: what was cut.
        masks: of all sites, before the cut.
        buffers: those that the search changed, before the cut.
        tuned: parameters that were trained beside the mask, before the cut.
    """

    shrunk: Shrunk
    masks: Masks
    buffers: Mapping[str, Tensor]
    tuned: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """What the file of the proof holds: packed masks and flips, buffers, tuned parameters."""
        return {
            **{name: pack_bits(mask) for name, mask in self.masks.items()},
            **{name + _FLIP: pack_bits(flip) for name, flip in self.masks.flips.items()},
            **{_BUFFER + name: tensor for name, tensor in self.buffers.items()},
            **{_TUNED + name: tensor for name, tensor in self.tuned.items()},
        }


def cut_down_(module: nn.Module, manifest: Manifest) -> None:
    """Cut a module that was built from its config down to the sizes in the manifest.

    Raises:
        ArtifactError: the module has no such tensors, or not of these sizes.
    """
    shrunk = _shrunk(manifest)
    own_shapes(module, shrunk.tensors)  # computed weights become plain parameters
    resize_(module, shrunk)


def whole_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """The shapes before the cut of all tensors that were cut.

    Raises:
        ArtifactError: the manifest does not say what was cut.
    """
    return {name: tuple(sliced.shape) for name, sliced in _shrunk(manifest).tensors.items()}


def read_proof(artifact: Artifact) -> Proof | None:
    """Read what a shrunk artifact is proved from; None for any other format.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    if artifact.format != SHRUNK:
        return None
    folder, manifest, entries = artifact.path, artifact.manifest, artifact.entries
    shrunk = _shrunk(manifest)
    stored = read_safetensors(folder / PROOF, ArtifactError)
    if sha256_tensors(stored) != manifest.text("proof"):
        raise ArtifactError(f"{folder / PROOF} was changed or damaged: copy the folder again")
    buffers = _take(stored, _BUFFER, manifest.names("buffers"), manifest)
    tuned = manifest.names("tuned") if "tuned" in manifest.values else []
    tensors = _take(stored, _TUNED, tuned, manifest)
    sites = {name for name, entry in entries.items() if entry.kept is not None}
    if not sites <= stored.keys() <= sites | {name + _FLIP for name in sites}:
        raise manifest.damaged(f"{PROOF} and the entries disagree on the sites")
    shapes = {
        name: shrunk.tensors[name].shape if name in shrunk.tensors else entries[name].shape
        for name in sites
    }
    try:
        unpacked = {
            key: unpack_bits(packed, shapes[_site(key, sites)]) for key, packed in stored.items()
        }
        flips = {name: unpacked[name + _FLIP] for name in sites if name + _FLIP in unpacked}
        masks = Masks({name: unpacked[name] for name in sorted(sites)}, flips)
    except ValueError as cause:
        raise manifest.damaged(f"{PROOF}: {cause}") from cause
    return Proof(shrunk=shrunk, masks=masks, buffers=buffers, tuned=tensors)


def _take(
    stored: dict[str, Tensor], prefix: str, names: list[str], manifest: Manifest
) -> dict[str, Tensor]:
    """Take the tensors of these names out of `stored`."""
    if not {prefix + name for name in names} <= stored.keys():
        raise manifest.damaged(f"{PROOF} lacks {prefix} of one of {names[:3]}")
    return {name: stored.pop(prefix + name) for name in names}


def _site(key: str, sites: set[str]) -> str:
    """The site that a key of the proof is about."""
    return key if key in sites else key.removesuffix(_FLIP)


def _shrunk(manifest: Manifest) -> Shrunk:
    try:
        return parse_shrunk(manifest.values.get("shrunk"))
    except ArtifactError as cause:
        raise manifest.damaged(str(cause)) from cause
