"""A job of the compiled kernel: an array of numbers that all its workers share."""

from __future__ import annotations

from enum import IntEnum

# Tokens that are summed at once: 64 floats are 4 registers of AVX-512, or 8 of AVX2.
WIDTHS = (64, 32, 16, 8)
# Rows whose sums are transposed together: 16 floats are a cache line of the output.
PANEL = 16
# Rows of W per item of planes; a multiple of PANEL.
CHUNK = 64
# Lanes of 32 bits of a vector, and the tokens of a tile of values in 8 or 16 bits on four of them.
LANES = (16, 8, 4)
# Rows are filled up to a multiple of so many weights, as many as are multiplied in one step.
STEP_OF_WEIGHTS = 4


class Field(IntEnum):
    """Places in a job, an array of int64; addresses are those of the first element.

    W is [rows, columns], X [columns, tokens]. Tiles are runs of tokens that are summed at once:
    `TILES` of them, `STEP` apart, from token `FIRST` on.
    """

    NEXT = 0  # the item to take, from 0
    SLOT = 1  # the scratch memory to take, from 0: one for each thread
    ITEMS = 2
    INPUTS = 3  # float32
    OUTPUTS = 4  # float32
    POINTERS = 5  # int32 [rows + 1]: where each row of W begins in PLACES and VALUES
    STOPS = 6  # int32 [rows]: where it ends; after it weights of 0 may fill it up
    PLACES = 7  # uint16 or int32: of a weight, its column, or the offset of its plane in X
    VALUES = 8  # float32, uint16 (the upper half of a float32) or int8
    BIAS = 9  # float32 [rows]
    ROWS = 10
    COLUMNS = 11
    TOKENS = 12
    FIRST = 13
    TILES = 14
    STEP = 15
    INPUT_SAMPLE = 16  # planes: floats of a sample in X
    OUTPUT_SAMPLE = 17  # planes: floats of a sample in Y
    OUTPUT_ROW = 18  # planes: floats from row to row of Y
    SCRATCH = 19  # tiles: packed X, for each thread
    SCRATCH_STEP = 20  # tiles: bytes for a thread
    PARTS = 21  # tiles: how many parts the rows have
    BOUNDS = 22  # tiles: int32 [parts + 1]: where each part begins, at multiples of PANEL
    ROW_SCALES = 23  # int8: float32 [rows]
    ROW_STARTS = 24  # int8: int32 [rows]: what a sum begins with
