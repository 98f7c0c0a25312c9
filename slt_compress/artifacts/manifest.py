"""What an artifact is: file names, the record of one on disk, and one that was opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from slt_compress.artifacts.content import Evidence
from slt_compress.artifacts.entries import Entry
from slt_compress.artifacts.formats import MASK_FORMAT
from slt_compress.checkpoints import Checkpoint
from slt_compress.masks import Masks
from slt_compress.storage.manifests import Manifest

# The newest version. An artifact is written in the oldest that says all of it: gains of units and
# tuned parameters need 2.
KIND = ("slt-artifact", 2)
_MARKER_VERSION = 1
QUANT_METHOD = "slt-compress"
SPARSE_WEIGHTS = "weights.slt.safetensors"
SPARSE_INDEX = "weights.slt.safetensors.index.json"
SHARD_NAME = "weights.slt-{:05d}-of-{:05d}.safetensors"
DENSE_WEIGHTS = "model.safetensors"
DENSE_MANIFEST = "slt.json"
CONFIG = "config.json"
PROBE = "probe.safetensors"
PROOF = "proof.slt.safetensors"
# Formats of whole artifacts and not of tensors, so not in FORMATS.
SHRUNK = "shrunk"
ONNX = "onnx"
ONNX_MODEL, ONNX_DATA = "model.onnx", "model.onnx.data"
# Why an artifact in one of these formats cannot be read as a module.
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
        entries: what is stored, by name of the tensor.
        nbytes: bytes of its weight files, headers included.
        dense_nbytes: bytes of the same tensors, each stored whole and once; for a shrunk artifact,
            those of the model before.
        manifest: the whole manifest, opened once.
        shards: of weights in shards, the file of every stored tensor, not checked; otherwise None.
    """

    path: Path
    format: str
    entries: Mapping[str, Entry]
    nbytes: int
    dense_nbytes: int
    manifest: Manifest = field(repr=False, compare=False)
    shards: object = field(default=None, repr=False, compare=False)

    @property
    def provenance(self) -> object:
        """Where the weights come from, as the folder says; not checked."""
        return self.manifest.values.get("provenance")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedArtifact:
    """An artifact as a model.

    Attributes:
        artifact: the folder.
        checkpoint: the model with what data preparation needs; its `folder` is the artifact's.
        masks: which weights are stored; None for a dense export, which does not say.
    """

    artifact: Artifact
    checkpoint: Checkpoint
    masks: Masks | None

    @property
    def module(self) -> nn.Module:
        """The dense model with zeros, on the CPU in eval mode."""
        return self.checkpoint.module


def manifest_head(
    checkpoint: Checkpoint,
    evidence: Evidence,
    *,
    format: str,
    dense_nbytes: int,
    ties: Mapping[str, str],
) -> dict[str, Any]:
    """What the manifest of every artifact has; `probe` is null until one is written."""
    return {
        "kind": KIND[0],
        "version": version_of(evidence),
        "format": format,
        "family": checkpoint.family,
        "task": checkpoint.task,
        "config": checkpoint.config,
        "classes": None if checkpoint.classes is None else list(checkpoint.classes),
        "num_classes": checkpoint.num_classes,
        "license": checkpoint.license,
        "ticket": evidence.ticket_hash,
        "provenance": evidence.provenance,
        "probe": None,
        "dense_nbytes": dense_nbytes,
        "ties": ties,
    }


def version_of(evidence: Evidence) -> int:
    """The oldest version whose readers understand an artifact of this evidence."""
    return KIND[1] if {"unit_gains", "tuned"} & evidence.provenance.keys() else 1


def config_marker(format: str) -> dict[str, Any]:
    """What config.json says, so that no library takes sparse weights for its own."""
    return {"quant_method": QUANT_METHOD, "format": format, "version": _MARKER_VERSION}
