"""Write a shrunk artifact: smaller tensors, what was cut, and what proves it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from slt_compress.artifacts.content import Evidence
from slt_compress.artifacts.entries import Entry, entry_dicts
from slt_compress.artifacts.manifest import (
    CONFIG,
    PROOF,
    SHRUNK,
    SPARSE_WEIGHTS,
    Artifact,
    config_marker,
    manifest_head,
)
from slt_compress.artifacts.reading import describe_artifact
from slt_compress.artifacts.shrinking import Shrunk
from slt_compress.artifacts.shrunk import Proof
from slt_compress.artifacts.state import masked_state
from slt_compress.artifacts.writing import new_folder, write_evidence, write_probe
from slt_compress.checkpoints import Checkpoint
from slt_compress.masks import Masks, count_kept
from slt_compress.storage.files import sha256_tensors, write_json, write_safetensors


def write_shrunk(
    path: Path,
    evidence: Evidence,
    *,
    checkpoint: Checkpoint,
    module: nn.Module,
    proof: Proof,
    dense_nbytes: int,
) -> Artifact:
    """Write a shrunk model into a new folder, whole or not at all.

    Args:
        path: the folder; it must not exist, or be empty.
        evidence: what the folder holds beside the weights; its probe is of the masked model.
        checkpoint: where the model came from.
        module: the shrunk model.
        proof: what was cut, and what proves it.
        dense_nbytes: bytes of the tensors of the model before.

    Raises:
        ArtifactError: the path is taken, or the module is not masked.
    """
    masks = Masks({name: _cut(proof.shrunk, name, mask) for name, mask in proof.masks.items()})
    state, packed = masked_state(module, masks), proof.tensors()
    kept = {name: count_kept(mask) for name, mask in masks.items()}
    entries = {
        name: Entry.whole(tensor, kept=kept.get(name)) for name, tensor in state.tensors.items()
    }
    manifest: dict[str, object] = {
        **manifest_head(
            checkpoint, evidence, format=SHRUNK, dense_nbytes=dense_nbytes, ties=state.ties
        ),
        "shrunk": proof.shrunk.to_dict(),
        "entries": entry_dicts(entries),
        "buffers": sorted(proof.buffers),
        **({"tuned": sorted(proof.tuned)} if proof.tuned else {}),
        "proof": sha256_tensors(packed),
        "hash": sha256_tensors(state.tensors),
    }
    config = {**checkpoint.config, "quantization_config": config_marker(SHRUNK)}
    with new_folder(path) as folder:
        manifest |= write_probe(folder, evidence)
        write_safetensors(folder / PROOF, packed)
        write_json(folder / CONFIG, config)
        manifest |= write_evidence(folder, checkpoint, evidence)
        write_safetensors(folder / SPARSE_WEIGHTS, state.tensors, manifest)
    return describe_artifact(path)


def _cut(shrunk: Shrunk, name: str, mask: Tensor) -> Tensor:
    sliced = shrunk.tensors.get(name)
    return mask if sliced is None else sliced.of(mask)
