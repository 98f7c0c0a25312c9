"""The shrunk artifact: smaller tensors, what was cut, and the masks and buffers that prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from slt_compress.artifacts.manifest import (
    CONFIG,
    KIND,
    PROBE,
    PROOF,
    SHRUNK,
    SPARSE_WEIGHTS,
    LoadedArtifact,
    manifest_head,
)
from slt_compress.artifacts.shrinking import Shrunk, Sliced, parse_shrunk, resize_
from slt_compress.artifacts.state import masked_state, own_shapes
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.companions import copy_companions
from slt_compress.errors import ArtifactError
from slt_compress.masks import Masks, pack_bits, unpack_bits
from slt_compress.storage.files import (
    atomic_folder,
    dtype_name,
    read_safetensors,
    sha256_file,
    sha256_tensors,
    write_json,
    write_safetensors,
)
from slt_compress.storage.manifests import Manifest

_BUFFER, _FLIP = "buffer/", ".flip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a shrunk artifact is proved from, beside its origin: the masked model's other facts.

    Attributes:
        shrunk: what was cut.
        masks: of all sites, as they were before.
        buffers: those that the search changed, as they were before.
    """

    shrunk: Shrunk
    masks: Masks
    buffers: Mapping[str, Tensor]


def write_shrunk(
    path: Path,
    *,
    checkpoint: Checkpoint,
    module: nn.Module,
    proof: Proof,
    dense_nbytes: int,
    report: Mapping[str, Any],
    card: str,
    ticket_hash: str,
    provenance: Mapping[str, Any],
    probe: Mapping[str, Tensor],
) -> None:
    """Write a shrunk model into a new folder, whole or not at all.

    Args:
        path: the folder; it must not exist, or be empty.
        checkpoint: where the model came from.
        module: the shrunk model.
        proof: what was cut, and what proves it.
        dense_nbytes: bytes of the tensors of the model before.
        report: JSON-able, becomes report.json.
        card: Markdown, becomes README.md.
        ticket_hash: hash of the ticket's manifest.
        provenance: as for any artifact.
        probe: inputs and logits of the masked model; empty where there are none.

    Raises:
        ArtifactError: the path is taken, or the module is not masked.
    """
    left = Masks({name: _left(proof.shrunk, name, mask) for name, mask in proof.masks.items()})
    state = masked_state(module, left)
    packed = _packed(proof)
    kept = {name: {"kept": int(mask.count_nonzero())} for name, mask in left.items()}
    facts = {
        name: {"shape": list(t.shape), "dtype": dtype_name(t.dtype), "format": "dense"}
        for name, t in state.tensors.items()
    }
    manifest: dict[str, Any] = {
        **manifest_head(
            checkpoint, format=SHRUNK, ticket_hash=ticket_hash, provenance=provenance,
            dense_nbytes=dense_nbytes, ties=state.ties,
        ),
        "shrunk": proof.shrunk.to_dict(),
        "entries": {name: entry | kept.get(name, {}) for name, entry in facts.items()},
        "buffers": sorted(proof.buffers), "proof": sha256_tensors(packed),
        "hash": sha256_tensors(state.tensors),
    }  # fmt: skip
    marker = {"quant_method": "slt-compress", "format": SHRUNK, "version": KIND[1]}
    try:
        with atomic_folder(path) as folder:
            if probe:
                write_safetensors(folder / PROBE, probe)
                manifest["probe"] = sha256_file(folder / PROBE)
            write_safetensors(folder / PROOF, packed)
            write_safetensors(folder / SPARSE_WEIGHTS, state.tensors, manifest)
            write_json(folder / CONFIG, {**checkpoint.config, "quantization_config": marker})
            copy_companions(checkpoint.folder, folder)
            write_json(folder / "report.json", report)
            (folder / "README.md").write_bytes(card.encode())
    except FileExistsError as cause:
        raise ArtifactError(f"cannot export: {cause}") from cause
    except (OSError, SafetensorError) as cause:
        raise ArtifactError(f"cannot export to {path}: {cause}") from cause


def cut_down_(module: nn.Module, manifest: Manifest) -> None:
    """Make a module, built whole from its config, as small as the manifest says.

    Raises:
        ArtifactError: the module has no such tensors, or not of these sizes.
    """
    shrunk = _shrunk(manifest)
    own_shapes(module, shrunk.tensors)  # weights that are computed become plain
    resize_(module, shrunk)


def read_proof(loaded: LoadedArtifact) -> Proof | None:
    """Read what a shrunk artifact is proved from; None for any other artifact.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    if loaded.artifact.format != SHRUNK:
        return None
    folder = loaded.artifact.path
    manifest = Manifest(values=loaded.manifest, where=folder / SPARSE_WEIGHTS, error=ArtifactError)
    shrunk, entries = _shrunk(manifest), manifest.object("entries")
    stored = read_safetensors(folder / PROOF, ArtifactError)
    if sha256_tensors(stored) != manifest.text("proof"):
        raise ArtifactError(f"{folder / PROOF} was changed or damaged: copy the folder again")
    names = manifest.names("buffers")
    if not {_BUFFER + name for name in names} <= stored.keys():
        raise manifest.damaged(f"{PROOF} lacks one of the buffers {names[:3]}")
    buffers = {name: stored.pop(_BUFFER + name) for name in names}
    sites = {name for name, entry in entries.items() if "kept" in entry}
    if not sites <= stored.keys() <= sites | {name + _FLIP for name in sites}:
        raise manifest.damaged(f"{PROOF} and the entries disagree on the sites")
    shapes = {
        name: shrunk.tensors[name].shape if name in shrunk.tensors else entries[name]["shape"]
        for name in sites
    }
    try:
        bits = {
            name: unpack_bits(packed, tuple(shapes[_site(name, sites)]))
            for name, packed in stored.items()
        }
        flips = {name: bits[name + _FLIP] for name in sites if name + _FLIP in bits}
        masks = Masks({name: bits[name] for name in sorted(sites)}, flips)
    except ValueError as cause:
        raise manifest.damaged(f"{PROOF}: {cause}") from cause
    return Proof(shrunk=shrunk, masks=masks, buffers=buffers)


def _packed(proof: Proof) -> dict[str, Tensor]:
    """The tensors of the proof's file."""
    return {
        **{name: pack_bits(mask) for name, mask in proof.masks.items()},
        **{name + _FLIP: pack_bits(flip) for name, flip in proof.masks.flips.items()},
        **{_BUFFER + name: tensor for name, tensor in proof.buffers.items()},
    }


def _site(key: str, sites: set[str]) -> str:
    """The site that a key of the proof is about."""
    return key if key in sites else key.removesuffix(_FLIP)


def _shrunk(manifest: Manifest) -> Shrunk:
    try:
        return parse_shrunk(manifest.values.get("shrunk"))
    except ArtifactError as cause:
        raise manifest.damaged(str(cause)) from cause


def _left(shrunk: Shrunk, name: str, mask: Tensor) -> Tensor:
    sliced: Sliced | None = shrunk.tensors.get(name)
    return mask if sliced is None else sliced.of(mask)
