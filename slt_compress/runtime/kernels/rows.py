"""A sparse matrix by its rows, in float32 and in lower precisions."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from slt_compress.runtime.kernels.job_layout import PANEL, STEP_OF_WEIGHTS, Field

# What a row costs beside its weights, in weights.
_ROW_WORK = 8
# Up to this share of all weights, those of -0 count as kept.
_FEW = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseRows:
    """A float32 matrix [rows, columns] by its rows, and a bias for each.

    Attributes:
        pointers: int32 [rows + 1], where each row begins in the next two.
        stops: int32 [rows], where its weights end; after that weights of 0 may fill it up.
        places: the column of every weight, as int32, or as uint16 bits in int16, which torch can
            pickle.
        values: float32.
        bias: float32 [rows].
        rows, columns, nonzero: how many there are; `nonzero` counts the whole matrix.
        bounds: see `parts_of`.
    """

    pointers: Tensor
    stops: Tensor
    places: Tensor
    values: Tensor
    bias: Tensor
    rows: int
    columns: int
    nonzero: int
    bounds: dict[int, Tensor] = field(default_factory=dict)

    def columns_of_weights(self) -> Tensor:
        """The column of every weight, int64."""
        wide = self.places.long()
        return wide if self.places.dtype == torch.int32 else wide & 0xFFFF

    @property
    def fields(self) -> dict[Field, int]:
        """The addresses of the tensors, and the number of rows, for a job."""
        return {
            Field.POINTERS: self.pointers.data_ptr(),
            Field.STOPS: self.stops.data_ptr(),
            Field.PLACES: self.places.data_ptr(),
            Field.VALUES: self.values.data_ptr(),
            Field.BIAS: self.bias.data_ptr(),
            Field.ROWS: self.rows,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        parts = (self.pointers, self.stops, self.places, self.values, self.bias)
        return sum(part.nbytes for part in parts)

    def parts_of(self, count: int) -> Tensor:
        """Where each of so many parts of the rows begins, int32 [count + 1].

        All begin at multiples of PANEL and have about as many weights.
        """
        if count not in self.bounds:
            work = self.pointers.long() + _ROW_WORK * torch.arange(self.rows + 1)
            shares = torch.arange(count + 1) * int(work[-1]) // count
            starts = torch.searchsorted(work, shares)
            starts = (starts + PANEL // 2) // PANEL * PANEL
            starts[0], starts[-1] = 0, self.rows
            self.bounds[count] = starts.clamp_max(self.rows).int()
        return self.bounds[count]

    def dense(self) -> Tensor:
        """The matrix [rows, columns], bit for bit."""
        matrix = torch.zeros(self.rows, self.columns)
        row, entry = _entries(self)
        matrix[row, self.columns_of_weights()[entry]] = self.values[entry]
        return matrix


def _entries(rows: SparseRows) -> tuple[Tensor, Tensor]:
    """The row of every weight, and its place in `values`."""
    starts, counts = rows.pointers[:-1].long(), (rows.stops - rows.pointers[:-1]).long()
    row = torch.repeat_interleave(torch.arange(rows.rows), counts)
    before = counts.cumsum(0) - counts
    return row, torch.arange(row.numel()) - before[row] + starts[row]


def _kept(matrix: Tensor) -> Tensor:
    bits = matrix.view(torch.int32) != 0
    odd = int(bits.count_nonzero()) - int(matrix.count_nonzero())
    return bits if odd <= _FEW * matrix.numel() else matrix != 0


def sparse_rows(matrix: Tensor, bias: Tensor | None, *, filled: bool = False) -> SparseRows:
    """The weights of a dense float32 matrix [rows, columns] that are not 0.

    A few of -0 count as weights, so that `dense` gives them back; where they are many they stand
    for what a mask removed, and become +0.
    Where `filled`, rows are filled up to a multiple of `STEP_OF_WEIGHTS` with weights of 0, at the
    place of their last weight.
    """
    rows, columns = matrix.shape
    row, column = _kept(matrix.contiguous()).nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=rows)
    step = STEP_OF_WEIGHTS if filled else 1
    lengths = (counts + step - 1) // step * step
    ends = lengths.cumsum(0)
    starts = ends - lengths
    places = torch.zeros(int(lengths.sum()), dtype=torch.int64)
    values = torch.zeros(places.numel())
    entry = torch.arange(row.numel()) - (counts.cumsum(0) - counts)[row] + starts[row]
    if filled and row.numel():
        last = column[(counts.cumsum(0) - 1).clamp_min(0)]
        places = torch.repeat_interleave(last, lengths)
    places[entry], values[entry] = column, matrix[row, column]
    return SparseRows(
        pointers=torch.cat((starts[:1] * 0, ends)).int(),
        stops=(starts + counts).int(),
        places=places.int() if columns > 1 << 16 else places.to(torch.uint16).view(torch.int16),
        values=values,
        bias=torch.zeros(rows) if bias is None else bias.clone().contiguous(),
        rows=rows,
        columns=columns,
        nonzero=row.numel(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Narrow:
    """The values of a matrix, filled up, in a lower precision.

    Attributes:
        precision: `bf16` or `int8`.
        values: the upper halves of float32, int16; or int8 in units of the row's scale.
        scales: int8: float32 [rows].
        starts: int8: int32 [rows], what makes up for the inputs being 128 too large.
    """

    precision: str
    values: Tensor
    scales: Tensor | None = None
    starts: Tensor | None = None

    @property
    def fields(self) -> dict[Field, int]:
        """The addresses of the tensors for a job."""
        given = {Field.VALUES: self.values, Field.ROW_SCALES: self.scales,
                 Field.ROW_STARTS: self.starts}  # fmt: skip
        return {name: part.data_ptr() for name, part in given.items() if part is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        parts = (self.values, self.scales, self.starts)
        return sum(part.nbytes for part in parts if part is not None)


def narrowed(rows: SparseRows, precision: str) -> Narrow:
    """The values of a filled matrix, rounded to the nearest of a lower precision."""
    if precision == "bf16":
        return Narrow(precision=precision, values=rows.values.bfloat16().view(torch.int16))
    lengths = (rows.pointers[1:] - rows.pointers[:-1]).long()
    row = torch.repeat_interleave(torch.arange(rows.rows), lengths)
    largest = torch.zeros(rows.rows).scatter_reduce_(0, row, rows.values.abs(), "amax")
    scales = largest / 127
    whole = (rows.values / torch.where(scales > 0, scales, 1.0)[row]).round_()
    totals = torch.zeros(rows.rows).index_add_(0, row, whole)
    starts = (-128 * totals).int()
    return Narrow(precision=precision, values=whole.to(torch.int8), scales=scales, starts=starts)
