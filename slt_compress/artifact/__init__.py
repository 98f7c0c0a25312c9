"""The artifact folder: a masked model in one format, written whole and read without trust."""

from __future__ import annotations

from slt_compress.artifact.reading import (
    describe_artifact,
    is_artifact,
    read_artifact,
    read_masks,
)
from slt_compress.artifact.records import PROBE, Artifact, LoadedArtifact
from slt_compress.artifact.writing import write_artifact

__all__ = [
    "PROBE",
    "Artifact",
    "LoadedArtifact",
    "describe_artifact",
    "is_artifact",
    "read_artifact",
    "read_masks",
    "write_artifact",
]
