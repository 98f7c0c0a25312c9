"""What an artifact is: file names, the record of one on disk, and one that was opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from slt_compress.checkpoints import Checkpoint
from slt_compress.masks import Masks

KIND = ("slt-artifact", 1)
MASK_FORMAT = "mask"
SPARSE_WEIGHTS = "weights.slt.safetensors"
SPARSE_INDEX = "weights.slt.safetensors.index.json"
SHARD_NAME = "weights.slt-{:05d}-of-{:05d}.safetensors"
DENSE_WEIGHTS = "model.safetensors"
DENSE_MANIFEST = "slt.json"
CONFIG = "config.json"
PROBE = "probe.safetensors"
PROOF = "proof.slt.safetensors"
# formats of whole artifacts and not of tensors, so not in FORMATS
SHRUNK = "shrunk"
ONNX = "onnx"
ONNX_MODEL, ONNX_DATA = "model.onnx", "model.onnx.data"
# why an artifact of a format cannot be read as a module
NO_MODULE: Mapping[str, str] = {
    MASK_FORMAT: "holds a mask and no weights; open it with slt_compress.load",
    ONNX: f"is an ONNX model: onnxruntime.InferenceSession opens its {ONNX_MODEL}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An exported folder.

    Attributes:
        path: the folder.
        format: a name in `FORMATS`, or `shrunk` or `onnx`.
        entries: per stored tensor `format` (a name in `CODECS`), `shape`, `dtype`, and for sites
            `kept`, with `values` where kept values are stored in a narrower dtype.
        nbytes: bytes of its weight files, headers included.
        dense_nbytes: bytes of the same tensors, each stored whole and once; of a shrunk artifact
            those of the model before.
    """

    path: Path
    format: str
    entries: Mapping[str, Mapping[str, Any]]
    nbytes: int
    dense_nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedArtifact:
    """An artifact as a model.

    Attributes:
        artifact: the folder.
        checkpoint: the model with what data preparation needs; its `folder` is the artifact's.
        masks: which weights are stored; None for a dense export, which does not say.
        manifest: the whole manifest: `family`, `task`, `ticket` (hash of its manifest), `classes`…
    """

    artifact: Artifact
    checkpoint: Checkpoint
    masks: Masks | None
    manifest: Mapping[str, Any]

    @property
    def module(self) -> nn.Module:
        """The dense model with zeros, on the CPU in eval mode."""
        return self.checkpoint.module


def manifest_head(
    checkpoint: Checkpoint,
    *,
    format: str,
    ticket_hash: str,
    provenance: Mapping[str, Any],
    dense_nbytes: int,
    ties: Mapping[str, str],
) -> dict[str, Any]:
    """What the manifest of every artifact has; `probe` is null until one is written."""
    return {
        "kind": KIND[0],
        "version": KIND[1],
        "format": format,
        "family": checkpoint.family,
        "task": checkpoint.task,
        "config": checkpoint.config,
        "classes": None if checkpoint.classes is None else list(checkpoint.classes),
        "num_classes": checkpoint.num_classes,
        "license": checkpoint.license,
        "ticket": ticket_hash,
        "provenance": provenance,
        "probe": None,
        "dense_nbytes": dense_nbytes,
        "ties": ties,
    }
