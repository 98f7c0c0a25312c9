"""The artifact folder: a masked model in one format, written whole and read without trust."""

from __future__ import annotations

from slt_compress.artifacts.decoding import dtype_of
from slt_compress.artifacts.dense import streams_dense
from slt_compress.artifacts.manifest import (
    CONFIG,
    DENSE_MANIFEST,
    MASK_FORMAT,
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
    describe_artifact,
    described,
    expect_probe,
    is_artifact,
    open_manifest,
    read_artifact,
    weight_files,
)
from slt_compress.artifacts.shrunk import Proof, read_proof, write_shrunk
from slt_compress.artifacts.site_tensors import read_site_tensors
from slt_compress.artifacts.state import State, state_of
from slt_compress.artifacts.writing import MAX_SHARD_SIZE, write_artifact

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
    "LoadedArtifact",
    "MaskArtifact",
    "Proof",
    "State",
    "describe_artifact",
    "described",
    "dtype_of",
    "expect_probe",
    "is_artifact",
    "manifest_head",
    "open_manifest",
    "read_artifact",
    "read_mask_artifact",
    "read_proof",
    "read_site_tensors",
    "state_of",
    "streams_dense",
    "weight_files",
    "write_artifact",
    "write_shrunk",
]
