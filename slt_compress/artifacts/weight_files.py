"""The files of an artifact that hold weights."""

from __future__ import annotations

from pathlib import Path

from slt_compress.artifacts.manifest import ONNX_MODEL, PROBE, PROOF, Artifact
from slt_compress.errors import ArtifactError


def weight_files(folder: Path) -> list[Path]:
    """List the files of an artifact that hold weights, in the order of their names."""
    files = [*folder.glob("*.safetensors"), *folder.glob(f"{ONNX_MODEL}*")]
    return sorted(file for file in files if file.name not in (PROBE, PROOF))


def check_weights(artifact: Artifact) -> None:
    """Compare every weight file with its hash; a further one could be opened instead of them.

    Raises:
        ArtifactError: one is missing, not the one that was written, or not listed.
    """
    listed = artifact.manifest.object("files")
    for name in listed:
        artifact.manifest.checked_file(name)
    for file in weight_files(artifact.path):
        if file.name not in listed:
            raise ArtifactError(f"{file} is not of this artifact; its manifest does not list it")
