"""The artifact folder: a masked model in one format, written whole and read without trust."""

from __future__ import annotations

from slt_compress.artifact.reading import (
    describe_artifact,
    is_artifact,
    read_artifact,
    read_masks,
)
from slt_compress.artifact.records import PROBE, SHRUNK, Artifact, LoadedArtifact
from slt_compress.artifact.shrunken import Proof, read_proof, write_shrunk
from slt_compress.artifact.writing import write_artifact

__all__ = [
    "PROBE",
    "SHRUNK",
    "Artifact",
    "LoadedArtifact",
    "Proof",
    "describe_artifact",
    "is_artifact",
    "read_artifact",
    "read_masks",
    "read_proof",
    "write_artifact",
    "write_shrunk",
]
