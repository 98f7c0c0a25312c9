"""What a manifest says of sizes, compared with the headers of its files before any is believed."""

from __future__ import annotations

from math import prod

from slt_compress.artifacts.manifest import DENSE_WEIGHTS, SHRUNK, SPARSE_WEIGHTS, Artifact
from slt_compress.errors import ArtifactError
from slt_compress.storage.lazy import LazyTensors


def expect_stored_sizes(artifact: Artifact) -> None:
    """Refuse entries that are larger than what is stored whole, or than the model they are of.

    Raises:
        ArtifactError: one is, or a file is damaged.
    """
    entries, whole = artifact.entries, artifact.dense_nbytes
    nbytes = sum(prod(entry.shape) * entry.dtype.itemsize for entry in entries.values())
    if artifact.format != SHRUNK and nbytes > whole:
        raise artifact.manifest.damaged(
            f"its tensors have {nbytes:,} bytes, and the whole model is said to have {whole:,}"
        )
    files = (artifact.path / SPARSE_WEIGHTS, artifact.path / DENSE_WEIGHTS)
    shells = LazyTensors([file for file in files if file.is_file()][:1], ArtifactError).shells()
    for name, entry in entries.items():
        stored = (shells or {}).get(name) if entry.format == "dense" else None
        if stored is not None and stored.shape != entry.shape:
            raise artifact.manifest.damaged(
                f"it gives {name} the shape {entry.shape}, and {tuple(stored.shape)} is stored"
            )
