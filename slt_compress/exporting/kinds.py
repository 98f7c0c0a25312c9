"""The kinds of export: a ticket becomes a folder in the one that is asked for."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from slt_compress.artifacts import ONNX, Artifact
from slt_compress.errors import ArtifactError
from slt_compress.exporting.folded import export_folded
from slt_compress.exporting.folders import export_ticket
from slt_compress.exporting.onnx import export_onnx
from slt_compress.exporting.shrunk import export_shrunk


def export_as(
    folder: Path,
    target: Path,
    *,
    format: str,
    shrink: bool = False,
    fold: bool = False,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    inputs: tuple[Tensor, ...] | None = None,
    values_dtype: str | None = None,
    max_shard_size: str | int | None = None,
) -> Artifact:
    """Export the ticket in `folder` into the new folder `target`.

    The arguments are those of `api.export`.

    Raises:
        SltError: as in `export_ticket`, `export_shrunk`, `export_folded` and `export_onnx`.
    """
    if fold and (shrink or values_dtype is not None):
        raise ArtifactError("a folded export takes neither shrink nor values_dtype")
    if shrink and (values_dtype is not None or max_shard_size is not None):
        raise ArtifactError("a shrunk export takes neither values_dtype nor max_shard_size")
    if shrink:
        return export_shrunk(
            folder, target, format=format, origin=origin, model=model, inputs=inputs
        )
    if fold:
        return export_folded(
            folder, target, format=format, origin=origin, model=model,
            max_shard_size=max_shard_size,
        )  # fmt: skip
    if format == ONNX:
        return export_onnx(
            folder, target, origin=origin, model=model, values_dtype=values_dtype,
            max_shard_size=max_shard_size,
        )  # fmt: skip
    return export_ticket(
        folder, target, format=format, origin=origin, model=model, values_dtype=values_dtype,
        max_shard_size=max_shard_size,
    )  # fmt: skip
