"""Products of a sparse matrix with dense activations, on the compiled kernel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from slt_compress.runtime.kernels.compiled import run, threads_for, widest
from slt_compress.runtime.kernels.job_layout import (
    CHUNK,
    LANES,
    PANEL,
    WIDTHS,
    Field,
)
from slt_compress.runtime.kernels.packing import scratch_bytes
from slt_compress.runtime.kernels.rows import Narrow, SparseRows, narrowed

_NARROW, _WIDE = WIDTHS[-1], WIDTHS[0]
# Items for each thread, so that one that is held up leaves something to the others.
_SHARES = 4
# Reading a weight for one token takes as long as multiplying it with so many.
_VECTOR_WORK = 16
# Widths of the tiles for the tokens left after the wide ones, by their number in eights. A tile of
# 8 takes as long as one of 16, and three of them longer than one of 64 (measured with AVX-512).
_REST = ((), (8,), (16,), (32,), (32,), (32, 8), (32, 16), (64,), (64,))


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


def narrow_tiles(tokens: int, lanes: int) -> list[Tiles]:
    """Adjacent tiles of values in 8 or 16 bits: wide ones, and one for the tokens that are left."""
    wide = 4 * lanes
    first = tokens - tokens % wide
    tiles = [Tiles(wide, 0, first // wide, wide)] if first else []
    if tokens > first:
        width = next(4 * size for size in reversed(LANES) if 4 * size >= tokens - first)
        tiles.append(Tiles(width, first, 1, width))
    return tiles


def on_tiles(rows: SparseRows, inputs: Tensor, narrow: Narrow | None = None) -> Tensor:
    """Inputs [tokens, columns] times the matrix transposed, plus the bias: [tokens, rows].

    Args:
        rows: the matrix.
        inputs: float32, contiguous, on the CPU.
        narrow: its values in a lower precision, in which it is multiplied.
    """
    tokens, columns = inputs.shape
    outputs = torch.empty(tokens, rows.rows)
    bits = 8 * rows.places.element_size()
    fields = rows.fields | {
        Field.INPUTS: inputs.data_ptr(), Field.OUTPUTS: outputs.data_ptr(),
        Field.COLUMNS: columns, Field.TOKENS: tokens,
    }  # fmt: skip
    if tokens == 1:
        _on_vector(rows, fields, f"vector-{bits}")
        return outputs
    precision = "fp32" if narrow is None else narrow.precision
    fields |= {} if narrow is None else narrow.fields
    runs = tiles_of(tokens) if narrow is None else narrow_tiles(tokens, widest())
    for tiles in runs:
        threads = threads_for(tiles.count * tiles.width * rows.nonzero)
        parts = min(-(-_SHARES * threads // tiles.count), -(-rows.rows // PANEL))
        parts = parts if threads > 1 else 1
        step = scratch_bytes(precision, tiles.width, columns)
        scratch = torch.empty(threads * step, dtype=torch.uint8)
        bounds = rows.parts_of(parts)
        kind, items = f"linear-{precision}-{bits}", tiles.count * parts
        run(kind, tiles.width, threads, items, fields | {
            Field.FIRST: tiles.first, Field.PARTS: parts, Field.BOUNDS: bounds.data_ptr(),
            Field.SCRATCH: scratch.data_ptr(), Field.SCRATCH_STEP: step,
        })  # fmt: skip
    return outputs


def _on_vector(rows: SparseRows, fields: dict[Field, int], name: str) -> None:
    threads = threads_for(_VECTOR_WORK * rows.nonzero)
    parts = min(_SHARES * threads, -(-rows.rows // PANEL)) if threads > 1 else 1
    bounds = rows.parts_of(parts)
    run(name, 1, threads, parts, fields | {Field.BOUNDS: bounds.data_ptr()})


class Linear:
    """Inputs [..., columns] times a sparse matrix transposed, plus its bias."""

    def __init__(self, rows: SparseRows, precision: str = "fp32") -> None:
        self.rows = rows
        self.narrow = None if precision == "fp32" else narrowed(rows, precision)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.rows.nbytes + (0 if self.narrow is None else self.narrow.nbytes)

    def dense(self) -> Tensor:
        """The matrix [rows, columns] in float32, bit for bit."""
        return self.rows.dense()

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., rows]."""
        tokens = inputs.reshape(-1, self.rows.columns).contiguous()
        outputs = on_tiles(self.rows, tokens, self.narrow)
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
    fields = rows.fields | {
        Field.INPUTS: inputs.data_ptr(), Field.OUTPUTS: outputs.data_ptr(), Field.TOKENS: tokens,
        Field.INPUT_SAMPLE: inputs.stride(0), Field.OUTPUT_SAMPLE: outputs.stride(0),
        Field.OUTPUT_ROW: outputs.stride(1),
    }  # fmt: skip
    for tiles in tiles_within(tokens):
        count = samples * tiles.count
        threads = threads_for(count * tiles.width * rows.nonzero)
        run("planes", tiles.width, threads, count * chunks, fields | {
            Field.FIRST: tiles.first, Field.TILES: tiles.count, Field.STEP: tiles.step,
        })  # fmt: skip
