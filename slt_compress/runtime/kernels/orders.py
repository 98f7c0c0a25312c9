"""The order of tokens in packed inputs of 8 or 16 bits.

It is the one in which the products come out in order, after the inputs of several columns were
interleaved within each 16 bytes. `lanes` are words of 32 bits in a vector of sums, and a tile has
four such vectors.
"""

from __future__ import annotations

from typing import Any

from slt_compress.runtime.kernels.llvm import Emitter, constant


def half_orders(lanes: int, half: int) -> list[list[int]]:
    """The tokens of the low and the high words of a vector."""
    return [
        [
            lanes * (2 * half + d % 4 // 2) + 4 * (d // 4) + 2 * (d % 2) + word
            for d in range(lanes)
        ]
        for word in range(2)
    ]  # fmt: skip


def byte_orders(lanes: int) -> list[list[int]]:
    """The tokens of the first to fourth bytes of a vector of words."""
    return [[lanes * (d % 4) + 4 * (d // 4) + byte for d in range(lanes)] for byte in range(4)]


def _parts_of(emit: Emitter, index: Any, lanes: int) -> tuple[Any, Any, Any]:
    """A token as lanes * j + 4 * line + i."""
    build = emit.build
    within = build.urem(index, constant(lanes))
    return (
        build.udiv(index, constant(lanes)),
        build.udiv(within, constant(4)),
        build.urem(within, constant(4)),
    )


def half_place(emit: Emitter, index: Any, lanes: int) -> Any:
    """Where a token lies, in words."""
    build = emit.build
    j, line, i = _parts_of(emit, index, lanes)
    half, pair = build.udiv(j, constant(2)), build.urem(j, constant(2))
    where = build.add(emit.times(half, 2 * lanes), emit.times(line, 8))
    return build.add(where, build.add(emit.times(pair, 4), i))


def byte_place(emit: Emitter, index: Any, lanes: int) -> Any:
    """Where a token lies, in bytes."""
    j, line, i = _parts_of(emit, index, lanes)
    return emit.build.add(emit.times(line, 16), emit.build.add(emit.times(j, 4), i))


def inverse_place(emit: Emitter, index: Any, lanes: int) -> Any:
    """Where the inverse of a token's scale lies: in the order in which bytes are made."""
    j, line, i = _parts_of(emit, index, lanes)
    return emit.build.add(emit.times(i, lanes), emit.build.add(emit.times(line, 4), j))
