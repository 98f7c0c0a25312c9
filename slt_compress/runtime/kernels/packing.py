"""Pack a tile of the inputs: [tokens, columns] in float32 becomes [columns, tokens].

In 8 or 16 bits the tokens of a column lie in an order in which the products come out in order: see
`dots`, where the rows of several columns are interleaved within each 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from slt_compress.runtime.kernels.job_layout import WIDTHS, Field
from slt_compress.runtime.kernels.llvm import FLOAT, I32, Emitter, constant, vector
from slt_compress.runtime.kernels.orders import (
    byte_orders,
    byte_place,
    half_orders,
    half_place,
    inverse_place,
)

I8, I16 = ir.IntType(8), ir.IntType(16)
# Bytes of a packed input, by precision.
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
# Inputs in eight bits are 128 plus what they are in units of a token's scale.
ZERO, LARGEST = 128.0, 127.0
Nothing = tuple[()]
# A tile: where its tokens are read, and where its packed memory is.
Pack = Callable[[Any, Any], None]


def packer(emit: Emitter, precision: str, width: int) -> Pack:
    """A function that packs the tile from a first token on into scratch memory."""
    return {"fp32": _floats, "bf16": _halves, "int8": _bytes}[precision](emit, width)


def scales_after(emit: Emitter, scratch: Any, width: int) -> Any:
    """Where the scales of a tile's tokens are, behind its packed inputs in eight bits."""
    place = emit.at(scratch, emit.times(emit.field(Field.COLUMNS), width))
    return emit.build.bitcast(place, FLOAT.as_pointer())


def scratch_bytes(precision: str, width: int, columns: int) -> int:
    """Bytes of scratch memory of a tile, a multiple of a cache line."""
    extra = 8 * width if precision == "int8" else 0
    return -(-(columns * width * BYTES[precision] + extra) // 64) * 64


def _reader(emit: Emitter, first: Any) -> Callable[[Any], Any]:
    """Where a token of the tile is read; the last one is repeated past the end."""
    build, columns = emit.build, emit.field(Field.COLUMNS)
    source = emit.pointer(Field.INPUTS, FLOAT)
    last = build.sub(emit.field(Field.TOKENS), constant(1))

    def token(index: Any) -> Any:
        place = emit.least(build.add(first, index), last)
        return emit.at(source, build.mul(place, columns))

    return token


def _blocks(
    emit: Emitter, size: int, block: Callable[[Any], None], single: Callable[[Any], None]
) -> None:
    """Columns in blocks, and those that are left one by one."""
    build, columns = emit.build, emit.field(Field.COLUMNS)
    whole = build.sub(columns, build.srem(columns, constant(size)))

    def run(body: Callable[[Any], None]) -> Callable[[Any, Sequence[Any]], Nothing]:
        def step(index: Any, _: Sequence[Any]) -> Nothing:
            body(index)
            return ()

        return step

    emit.loop(constant(0), whole, size, run(block))
    emit.loop(whole, columns, 1, run(single))


def _floats(emit: Emitter, width: int) -> Pack:
    build, size = emit.build, min(width, 16)

    def pack(first: Any, scratch: Any) -> None:
        token = _reader(emit, first)
        target = build.bitcast(scratch, FLOAT.as_pointer())

        def block(column: Any) -> None:
            def group(start: Any, _: Sequence[Any]) -> Nothing:
                rows = [token(build.add(start, constant(i))) for i in range(size)]
                turned = emit.transpose([emit.load(emit.at(row, column), size) for row in rows])
                for i, values in enumerate(turned):
                    line = emit.times(build.add(column, constant(i)), width)
                    emit.store(values, emit.at(target, line, start))
                return ()

            emit.loop(constant(0), constant(width), size, group)

        def single(column: Any) -> None:
            def one(index: Any, _: Sequence[Any]) -> Nothing:
                value = build.load(emit.at(token(index), column))
                build.store(value, emit.at(target, emit.times(column, width), index))
                return ()

            emit.loop(constant(0), constant(width), 1, one)

        _blocks(emit, size, block, single)

    return pack


def _halves(emit: Emitter, width: int) -> Pack:
    """Tokens in 16 bits, the upper half of a float32 rounded to nearest, ties to even."""
    build, lanes = emit.build, width // 4

    def pack(first: Any, scratch: Any) -> None:
        token = _reader(emit, first)
        target = build.bitcast(scratch, I16.as_pointer())

        def block(column: Any) -> None:
            for half in range(2):
                words = [
                    [_rounded(emit, v) for v in _turned(emit, token, column, order)]
                    for order in half_orders(lanes, half)
                ]
                for i, (low, high) in enumerate(zip(*words, strict=True)):
                    upper = build.and_(high, _same(0xFFFF0000, lanes))
                    both = build.or_(build.lshr(low, _same(16, lanes)), upper)
                    line = emit.times(build.add(column, constant(i)), width)
                    emit.write(both, emit.at(target, line, constant(half * 2 * lanes)))

        def single(column: Any) -> None:
            def one(index: Any, _: Sequence[Any]) -> Nothing:
                value = build.load(emit.at(token(index), column))
                word = build.trunc(build.lshr(_rounded(emit, value), ir.Constant(I32, 16)), I16)
                place = half_place(emit, index, lanes)
                build.store(word, emit.at(target, emit.times(column, width), place))
                return ()

            emit.loop(constant(0), constant(width), 1, one)

        _blocks(emit, lanes, block, single)

    return pack


def _bytes(emit: Emitter, width: int) -> Pack:
    """Tokens in eight bits, each in units of its own largest value over 127."""
    build, lanes = emit.build, width // 4

    def pack(first: Any, scratch: Any) -> None:
        token = _reader(emit, first)
        scales = scales_after(emit, scratch, width)
        inverses = emit.at(scales, constant(width))
        _scale(emit, token, scales, inverses, width)

        def block(column: Any) -> None:
            sums: list[Any] = []
            for part, order in enumerate(byte_orders(lanes)):
                inverse = emit.load(emit.at(inverses, constant(part * lanes)), lanes)
                turned = [
                    build.shl(_quantised(emit, v, inverse), _same(8 * part, lanes))
                    for v in _turned(emit, token, column, order)
                ]
                both = zip(sums, turned, strict=True)
                sums = [build.or_(one, other) for one, other in both] if sums else turned
            for i, values in enumerate(sums):
                line = emit.times(build.add(column, constant(i)), width)
                emit.write(values, emit.at(scratch, line))

        def single(column: Any) -> None:
            def one(index: Any, _: Sequence[Any]) -> Nothing:
                value = build.load(emit.at(token(index), column))
                inverse = build.load(emit.at(inverses, inverse_place(emit, index, lanes)))
                byte = build.trunc(_quantised(emit, value, inverse), I8)
                place = byte_place(emit, index, lanes)
                build.store(byte, emit.at(scratch, emit.times(column, width), place))
                return ()

            emit.loop(constant(0), constant(width), 1, one)

        _blocks(emit, lanes, block, single)

    return pack


def _scale(
    emit: Emitter, token: Callable[[Any], Any], scales: Any, inverses: Any, width: int
) -> None:
    """The scale of every token, and its inverse; NaN where an input is not finite."""
    build, columns, lanes = emit.build, emit.field(Field.COLUMNS), WIDTHS[2]
    whole = build.sub(columns, build.srem(columns, constant(lanes)))
    zero, none = ir.Constant(FLOAT, 0.0), ir.Constant(vector(lanes), [0.0] * lanes)

    def larger(kind: str, value: Any, state: Sequence[Any], nothing: Any) -> Sequence[Any]:
        size = emit.call(f"llvm.fabs.{kind}", value.type, value)
        most = emit.call(f"llvm.maxnum.{kind}", value.type, state[0], size)
        return [most, emit.multiply_add(value, nothing, state[1])]

    def one(index: Any, _: Sequence[Any]) -> Nothing:
        place = token(index)
        wide = emit.loop(
            constant(0), whole, lanes,
            lambda c, s: larger(f"v{lanes}f32", emit.load(emit.at(place, c), lanes), s, none),
            [none, none],
        )  # fmt: skip
        first = [emit.reduce(wide[0], "llvm.maxnum.f32"), emit.reduce(wide[1], None)]
        most, odd = emit.loop(
            whole, columns, 1,
            lambda c, s: larger("f32", build.load(emit.at(place, c)), s, zero), first,
        )  # fmt: skip
        some = build.fcmp_ordered(">", most, zero)
        safe = build.select(some, most, ir.Constant(FLOAT, 1.0))
        scale = build.fadd(build.fdiv(most, ir.Constant(FLOAT, LARGEST)), odd)
        build.store(scale, emit.at(scales, index))
        inverse = build.fdiv(ir.Constant(FLOAT, LARGEST), safe)
        build.store(inverse, emit.at(inverses, inverse_place(emit, index, width // 4)))
        return ()

    emit.loop(constant(0), constant(width), 1, one)


def _turned(
    emit: Emitter, token: Callable[[Any], Any], column: Any, order: Sequence[int]
) -> list[Any]:
    """Some tokens of as many columns, transposed."""
    rows = [emit.at(token(constant(index)), column) for index in order]
    return emit.transpose([emit.load(row, len(order)) for row in rows])


def _quantised(emit: Emitter, value: Any, inverse: Any) -> Any:
    """An i32 from 1 to 255; a NaN becomes one of them too, as its token's scale is NaN."""
    build, of = emit.build, value.type
    many = isinstance(of, ir.VectorType)
    kind = f"v{of.count}f32" if many else "f32"

    def number(x: float) -> ir.Constant:
        return ir.Constant(of, [x] * of.count if many else x)

    scaled = build.fmul(value, inverse)
    bounded = emit.call(f"llvm.maxnum.{kind}", of, scaled, number(-LARGEST))
    bounded = emit.call(f"llvm.minnum.{kind}", of, bounded, number(LARGEST))
    # Truncation of a positive number: to the nearest, and halves up.
    whole = ir.VectorType(I32, of.count) if many else I32
    return build.fptosi(build.fadd(bounded, number(ZERO + 0.5)), whole)


def _rounded(emit: Emitter, value: Any) -> Any:
    """The bits of a float, of which the upper 16 are rounded."""
    build = emit.build
    many = isinstance(value.type, ir.VectorType)
    count = value.type.count if many else 0
    bits = build.bitcast(value, ir.VectorType(I32, count) if many else I32)
    odd = build.and_(build.lshr(bits, _same(16, count)), _same(1, count))
    up = build.add(bits, build.add(odd, _same(0x7FFF, count)))
    # A NaN could become 0 by it.
    return build.select(build.fcmp_unordered("uno", value, value), _same(0x7FC00000, count), up)


def _same(value: int, count: int) -> ir.Constant:
    return (
        ir.Constant(ir.VectorType(I32, count), [value] * count)
        if count
        else ir.Constant(I32, value)
    )
