"""Products of a sparse matrix with dense activations, on the compiled kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slt_compress.runtime.kernels.compiled import run
from slt_compress.runtime.kernels.job_layout import CHUNK, WIDTHS

_NARROW, _WIDE = WIDTHS[-1], WIDTHS[0]
# Widths of the tiles for the tokens left after the wide ones, by their number in eights. A tile of
# 8 takes as long as one of 16, and three of them longer than one of 64 (measured with AVX-512).
_REST = ((), (8,), (16,), (32,), (32,), (32, 8), (32, 16), (64,), (64,))


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseRows:
    """A float32 matrix [rows, columns] by its rows, and a bias for each.

    Attributes:
        pointers: int32 [rows + 1], where each row begins in the other two.
        places: the column of every weight, as int32, or as uint16 bits in int16, which torch can
            pickle.
        values: float32.
        bias: float32 [rows].
        rows, columns, nonzero: how many there are; `nonzero` counts the whole matrix.
    """

    pointers: Tensor
    places: Tensor
    values: Tensor
    bias: Tensor
    rows: int
    columns: int
    nonzero: int

    def columns_of_weights(self) -> Tensor:
        """The column of every weight, int64."""
        wide = self.places.long()
        return wide if self.places.dtype == torch.int32 else wide & 0xFFFF

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """The addresses of the tensors, in the order of a job's fields."""
        return (self.pointers.data_ptr(), self.places.data_ptr(),
                self.values.data_ptr(), self.bias.data_ptr())  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(part.nbytes for part in (self.pointers, self.places, self.values, self.bias))


def sparse_rows(matrix: Tensor, bias: Tensor | None) -> SparseRows:
    """The weights of a dense matrix [rows, columns] that are not 0."""
    rows, columns = matrix.shape
    row, column = matrix.nonzero(as_tuple=True)
    pointers = torch.zeros(rows + 1, dtype=torch.int32)
    pointers[1:] = torch.bincount(row, minlength=rows).cumsum(0)
    return SparseRows(
        pointers=pointers,
        places=column.int() if columns > 1 << 16 else column.to(torch.uint16).view(torch.int16),
        values=matrix[row, column].contiguous(),
        bias=torch.zeros(rows) if bias is None else bias.clone().contiguous(),
        rows=rows,
        columns=columns,
        nonzero=row.numel(),
    )


@dataclass(frozen=True, slots=True)
class Tiles:
    """`count` tiles of `width` tokens, `step` apart, from token `first` on."""

    width: int
    first: int
    count: int
    step: int


def tiles_of(tokens: int) -> list[Tiles]:
    """Adjacent tiles from token 0 to `tokens`, or up to 31 beyond."""
    first = tokens - tokens % _WIDE
    tiles = [Tiles(_WIDE, 0, first // _WIDE, _WIDE)] if first else []
    for width in _REST[-(-(tokens - first) // _NARROW)]:
        tiles.append(Tiles(width, first, 1, width))
        first += width
    return tiles


def tiles_within(tokens: int) -> list[Tiles]:
    """Tiles that cover exactly tokens 0 to `tokens`, at least 8; the last ones may overlap."""
    if tokens < _WIDE:
        width = next(width for width in WIDTHS if width <= tokens)
        count = -(-tokens // width)
        return [Tiles(width, 0, count, (tokens - width) // max(1, count - 1))]
    first = tokens - tokens % _WIDE
    rest = _REST[-(-(tokens - first) // _NARROW)]
    tiles = [Tiles(_WIDE, 0, first // _WIDE, _WIDE)]
    first = tokens - sum(rest)
    for width in rest:
        tiles.append(Tiles(width, first, 1, width))
        first += width
    return tiles


def on_tiles(rows: SparseRows, inputs: Tensor) -> Tensor:
    """Inputs [tokens, columns] times the matrix transposed, plus the bias: [tokens, rows].

    Args:
        rows: the matrix.
        inputs: float32, contiguous, on the CPU.
    """
    tokens, columns = inputs.shape
    outputs, runs = torch.empty(tokens, rows.rows), tiles_of(tokens)
    packed = torch.empty(columns * sum(tiles.count * tiles.width for tiles in runs))
    pieces, chunks = -(-columns // CHUNK), -(-rows.rows // CHUNK)
    read, write, between = inputs.data_ptr(), outputs.data_ptr(), packed.data_ptr()
    matrix, nonzero = rows.addresses, rows.nonzero
    multiply = f"_{8 * rows.places.element_size()}"
    for tiles in runs:
        covered = tiles.count * tiles.width
        shape = (rows.rows, columns, tokens, tiles.first)
        run(f"pack_{tiles.width}", covered * columns, tiles.count * pieces,
            read, between, *matrix, *shape)  # fmt: skip
        run(f"tiles_{tiles.width}{multiply}", covered * nonzero, tiles.count * chunks,
            between, write, *matrix, *shape)  # fmt: skip
    return outputs


class Linear:
    """Inputs [..., columns] times a sparse matrix transposed, plus its bias."""

    def __init__(self, rows: SparseRows) -> None:
        self.rows = rows

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.rows.nbytes

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., rows]."""
        outputs = on_tiles(self.rows, inputs.reshape(-1, self.rows.columns).contiguous())
        return outputs.view(*inputs.shape[:-1], self.rows.rows)


def on_planes(rows: SparseRows, inputs: Tensor, tokens: int, outputs: Tensor) -> None:
    """Fill the first `tokens` of every row of outputs [samples, rows, plane].

    Token t of a row is its bias plus the sum of weight times `inputs[sample][place + t]`.

    Args:
        rows: the matrix; its places are int32 offsets in a sample, and within it with any t.
        inputs: float32 [samples, …], contiguous, on the CPU.
        tokens: at least 8.
        outputs: float32, contiguous, on the CPU.
    """
    chunks, samples = -(-rows.rows // CHUNK), inputs.shape[0]
    nonzero, read, write = rows.nonzero, inputs.data_ptr(), outputs.data_ptr()
    for tiles in tiles_within(tokens):
        count = samples * tiles.count
        run(f"planes_{tiles.width}", count * tiles.width * nonzero, count * chunks, read, write,
            *rows.addresses, rows.rows, rows.columns, tokens, tiles.first, tiles.count, tiles.step,
            inputs.stride(0), outputs.stride(0), outputs.stride(1))  # fmt: skip
