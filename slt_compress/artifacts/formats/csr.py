"""The sparse-csr codec: compressed sparse rows, by mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from slt_compress.artifacts.formats.base import (
    NmPattern,
    as_matrix,
    expect_parts,
    expect_same_shape,
    expect_values,
    scatter,
)
from slt_compress.errors import ArtifactError
from slt_compress.storage.bits import bits

if TYPE_CHECKING:
    from collections.abc import Mapping

_PARTS = ("crow_indices", "col_indices", "values", "shape")
_INDEX_DTYPES = (torch.uint8, torch.uint16, torch.int32, torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseCsr:
    """Row offsets, columns and values of the kept weights of a matrix.

    `crow_indices` is [rows + 1], `col_indices` and `values` are [kept], `shape` is the weight's own
    shape (int64). A weight of more than two dimensions is the matrix (first, rest); one of fewer is
    a single row. Each of the two index tensors has the smallest of uint8, uint16, int32 and int64
    that holds its largest possible value: the kept count, and the last column.
    """

    name: str = "sparse-csr"
    sparse: bool = True
    parts: tuple[str, ...] = _PARTS

    def encode(self, tensor: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Store the kept weights in row-major order."""
        expect_same_shape(tensor, mask)
        rows, cols = as_matrix(tuple(tensor.shape))
        keep = mask.cpu().contiguous().reshape(rows, cols)
        positions = keep.reshape(-1).nonzero().reshape(-1)
        crow = torch.zeros(rows + 1, dtype=torch.int64)
        # Not keep.sum(dim=1), which first converts every bool to eight bytes.
        counts = torch.from_numpy(np.count_nonzero(keep.numpy(), axis=1))
        torch.cumsum(counts, dim=0, out=crow[1:])
        columns = positions % max(cols, 1)
        return {
            "crow_indices": crow.to(_smallest(len(positions))),
            "col_indices": columns.to(_smallest(cols - 1)),
            "values": bits(tensor.cpu()).reshape(-1)[positions].view(tensor.dtype),
            "shape": torch.tensor(tuple(tensor.shape), dtype=torch.int64),
        }

    def decode(
        self,
        parts: Mapping[str, Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Put the values at the positions."""
        mask = self.decode_mask(parts, shape=shape) if mask is None else mask
        return scatter(parts["values"], mask, dtype)

    def decode_mask(self, parts: Mapping[str, Tensor], *, shape: tuple[int, ...]) -> Tensor:
        """Mark the stored positions."""
        positions = _positions(parts, shape)
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[positions] = True
        return mask.reshape(shape)

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int:
        """Count the bytes of the four parts."""
        rows, cols = as_matrix(shape)
        crow = (rows + 1) * _smallest(kept).itemsize
        columns = kept * _smallest(cols - 1).itemsize
        return crow + columns + kept * dtype.itemsize + len(shape) * torch.int64.itemsize


def _smallest(largest: int) -> torch.dtype:
    """Return the first index dtype that holds `largest`."""
    return next(dtype for dtype in _INDEX_DTYPES if largest <= torch.iinfo(dtype).max)


def _positions(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Check the parts against `shape` and each other; flat row-major positions, int64 [kept]."""
    expect_parts(parts, _PARTS)
    stated = parts["shape"]
    if stated.dtype is not torch.int64 or stated.dim() != 1 or tuple(stated.tolist()) != shape:
        raise ArtifactError(f"is stored with the shape {stated.tolist()} where {shape} is expected")
    rows, cols = as_matrix(shape)
    crow, columns = (_index(parts, part) for part in ("crow_indices", "col_indices"))
    kept = len(columns)
    expect_values(parts["values"], kept)
    if len(crow) != rows + 1:
        raise ArtifactError(
            f"has {len(crow):,} row offsets for {rows:,} rows; one more is expected"
        )
    # The range comes first: differences of numbers this large would wrap around.
    inside = bool(((crow >= 0) & (crow <= kept)).all())
    counts = crow.diff()
    if not inside or int(crow[0]) != 0 or int(crow[-1]) != kept or bool((counts < 0).any()):
        raise ArtifactError(f"has row offsets that do not rise from 0 to {kept:,}")
    if bool(((columns < 0) | (columns >= cols)).any()):
        raise ArtifactError(f"has a column outside 0..{cols - 1}")
    # The counts add up to `kept`, so this allocates no more than the columns did.
    positions = torch.repeat_interleave(torch.arange(rows), counts) * cols + columns
    if bool((positions.diff() <= 0).any()):
        raise ArtifactError("has columns that do not rise strictly within a row")
    return positions


def _index(parts: Mapping[str, Tensor], part: str) -> Tensor:
    """Return an index tensor as int64, if it is one."""
    index = parts[part]
    if index.dtype not in _INDEX_DTYPES or index.dim() != 1:
        raise ArtifactError(
            f"has {part} of {tuple(index.shape)} {index.dtype}, which is not an index"
        )
    return index.to(torch.int64)
