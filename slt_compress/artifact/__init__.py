"""The artifact folder: a masked model in one format, written whole and read without trust."""

from __future__ import annotations

from slt_compress.artifact.companions import copy_companions
from slt_compress.artifact.components import dtype_of
from slt_compress.artifact.masking import MaskArtifact, read_mask_artifact
from slt_compress.artifact.reading import (
    describe_artifact,
    is_artifact,
    read_artifact,
    read_site_tensors,
)
from slt_compress.artifact.records import MASK_FORMAT, PROBE, SHRUNK, Artifact, LoadedArtifact
from slt_compress.artifact.shrunken import Proof, read_proof, write_shrunk
from slt_compress.artifact.writing import MAX_SHARD_SIZE, write_artifact

__all__ = [
    "MASK_FORMAT",
    "MAX_SHARD_SIZE",
    "PROBE",
    "SHRUNK",
    "Artifact",
    "LoadedArtifact",
    "MaskArtifact",
    "Proof",
    "copy_companions",
    "describe_artifact",
    "dtype_of",
    "is_artifact",
    "read_artifact",
    "read_mask_artifact",
    "read_proof",
    "read_site_tensors",
    "write_artifact",
    "write_shrunk",
]
