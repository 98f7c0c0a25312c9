"""A job of the compiled kernel: an array of numbers that all its workers share."""

from __future__ import annotations

from enum import IntEnum

# Tokens that are summed at once: 64 floats are 4 registers of AVX-512, or 8 of AVX2.
WIDTHS = (64, 32, 16, 8)
# Rows whose sums are transposed together: 16 floats are a cache line of the output.
PANEL = 16
# Rows of W, or inputs to pack, per item; a multiple of PANEL.
CHUNK = 64


class Field(IntEnum):
    """Places in a job, an array of int64; addresses are those of the first element.

    W is [rows, columns], X [columns, tokens]. Tiles are runs of tokens that are summed at once:
    `TILES` of them, `STEP` apart, from token `FIRST` on.
    """

    NEXT = 0  # the item to take, from 0
    ITEMS = 1
    INPUTS = 2  # float32
    OUTPUTS = 3  # float32
    POINTERS = 4  # int32 [rows + 1]: where each row of W begins in PLACES and VALUES
    PLACES = 5  # uint16 or int32: of a weight, its column, or the offset of its plane in X
    VALUES = 6  # float32
    BIAS = 7  # float32 [rows]
    ROWS = 8
    COLUMNS = 9
    TOKENS = 10
    FIRST = 11
    TILES = 12
    STEP = 13
    INPUT_SAMPLE = 14  # planes: floats of a sample in X
    OUTPUT_SAMPLE = 15  # planes: floats of a sample in Y
    OUTPUT_ROW = 16  # planes: floats from row to row of Y
