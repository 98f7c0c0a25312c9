"""The artifact folder: a masked model in one format, written whole and read without trust."""

from __future__ import annotations

from slt_compress.artifacts.content import ArtifactContent, Evidence
from slt_compress.artifacts.dense import streams_dense
from slt_compress.artifacts.entries import Entry, entry_dicts
from slt_compress.artifacts.formats import MASK_FORMAT
from slt_compress.artifacts.manifest import (
    CONFIG,
    DENSE_MANIFEST,
    ONNX,
    ONNX_DATA,
    ONNX_MODEL,
    PROBE,
    SHRUNK,
    Artifact,
    LoadedArtifact,
    manifest_head,
)
from slt_compress.artifacts.mask_only import MaskArtifact, read_mask_artifact
from slt_compress.artifacts.reading import (
    checked_ties,
    describe_artifact,
    expect_probe,
    is_artifact,
    read_artifact,
)
from slt_compress.artifacts.shrunk import Proof, read_proof
from slt_compress.artifacts.shrunk_writing import write_shrunk
from slt_compress.artifacts.site_tensors import read_site_tensors
from slt_compress.artifacts.state import State, state_of
from slt_compress.artifacts.weight_files import weight_files
from slt_compress.artifacts.writing import (
    MAX_SHARD_SIZE,
    new_folder,
    write_artifact,
    write_evidence,
    write_probe,
)

__all__ = [
    "CONFIG",
    "DENSE_MANIFEST",
    "MASK_FORMAT",
    "MAX_SHARD_SIZE",
    "ONNX",
    "ONNX_DATA",
    "ONNX_MODEL",
    "PROBE",
    "SHRUNK",
    "Artifact",
    "ArtifactContent",
    "Entry",
    "Evidence",
    "LoadedArtifact",
    "MaskArtifact",
    "Proof",
    "State",
    "checked_ties",
    "describe_artifact",
    "entry_dicts",
    "expect_probe",
    "is_artifact",
    "manifest_head",
    "new_folder",
    "read_artifact",
    "read_mask_artifact",
    "read_proof",
    "read_site_tensors",
    "state_of",
    "streams_dense",
    "weight_files",
    "write_artifact",
    "write_evidence",
    "write_probe",
    "write_shrunk",
]
