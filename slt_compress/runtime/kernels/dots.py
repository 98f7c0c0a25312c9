"""A row of W times a tile of packed inputs, by precision: the innermost loops.

In float32 each kept weight takes one broadcast, and a fused multiply-add for each register of
tokens. In 16 bits two kept weights of a row are multiplied at once, in eight bits four: the inputs
of their columns, whichever these are, are interleaved in registers, so that the instructions for
dot products of neighbours (VNNI, BF16) serve unstructured zeros without a zero multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from slt_compress.runtime.kernels.job_layout import STEP_OF_WEIGHTS, WIDTHS, Field
from slt_compress.runtime.kernels.llvm import FLOAT, I32, I64, Emitter, constant, vector
from slt_compress.runtime.kernels.packing import I8, I16, scales_after

# A row and the packed tile: the sums, as vectors of neighbouring tokens.
Sums = Callable[[Any, Any], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Features:
    """Instructions of the processor.

    Attributes:
        bf16: dot products of pairs of bfloat16 (AVX-512).
        vnni: dot products of four bytes (AVX-512 or AVX).
    """

    bf16: bool = False
    vnni: bool = False


def sums_of(emit: Emitter, precision: str, width: int, places: ir.Type, features: Features) -> Sums:
    """A function that sums a row of W for a tile, plus the bias."""
    if precision == "fp32":
        one = float_sums(emit, width, places, scale=width)
        return lambda row, scratch: [one(row, emit.build.bitcast(scratch, FLOAT.as_pointer()))]
    make = _half_sums if precision == "bf16" else _byte_sums
    return make(emit, width, places, features)


def _bound(emit: Emitter, of: Field, row: Any) -> Any:
    pointers = emit.pointer(of, I32)
    return emit.build.sext(emit.build.load(emit.at(pointers, row)), I64)


def _bias(emit: Emitter, row: Any) -> Any:
    return emit.build.load(emit.at(emit.pointer(Field.BIAS, FLOAT), row))


def float_sums(emit: Emitter, width: int, places: ir.Type, scale: int) -> Callable[[Any, Any], Any]:
    """A row of W times a tile of X, plus the bias: a vector of `width`.

    Narrow tiles sum in several vectors, because each sum has to wait for the one before it.
    """
    build, chains = emit.build, WIDTHS[0] // width
    where, values = emit.pointer(Field.PLACES, places), emit.pointer(Field.VALUES, FLOAT)

    def plus(index: Any, total: Any, inputs: Any) -> Any:
        place = build.zext(build.load(emit.at(where, index)), I64)
        values_of_x = emit.load(emit.at(inputs, emit.times(place, scale)), width)
        weight = emit.splat(build.load(emit.at(values, index)), width)
        return emit.multiply_add(weight, values_of_x, total)

    def sums(row: Any, inputs: Any) -> Any:
        start, stop = _bound(emit, Field.POINTERS, row), _bound(emit, Field.STOPS, row)
        whole = build.sub(stop, build.srem(build.sub(stop, start), constant(chains)))
        zero = ir.Constant(vector(width), [0.0] * width)
        totals: Sequence[Any] = [emit.splat(_bias(emit, row), width), *[zero] * (chains - 1)]

        def several(index: Any, carried: Sequence[Any]) -> Sequence[Any]:
            return [plus(build.add(index, constant(i)), total, inputs)
                    for i, total in enumerate(carried)]  # fmt: skip

        totals = emit.loop(start, whole, chains, several, totals)
        rest = emit.loop(whole, stop, 1, lambda i, of: [plus(i, of[0], inputs)], totals[:1])
        totals = [*rest, *totals[1:]]
        while len(totals) > 1:
            pairs = zip(totals[::2], totals[1::2], strict=True)
            totals = [build.fadd(one, other) for one, other in pairs]
        return totals[0]

    return sums


def _rows_of(
    emit: Emitter, width: int, places: ir.Type, element: ir.Type, step: int
) -> Callable[[Any, Any], list[Any]]:
    """A function that gives the packed inputs of the columns of `step` weights."""
    build, where = emit.build, emit.pointer(Field.PLACES, places)

    def rows(index: Any, scratch: Any) -> list[Any]:
        base = build.bitcast(scratch, element.as_pointer())
        columns = [build.zext(build.load(emit.at(where, index, constant(i))), I64)
                   for i in range(step)]  # fmt: skip
        return [emit.at(base, emit.times(column, width)) for column in columns]

    return rows


def _half_sums(emit: Emitter, width: int, places: ir.Type, features: Features) -> Sums:
    build, lanes = emit.build, width // 4
    words = ir.VectorType(I16, 2 * lanes)
    rows = _rows_of(emit, width, places, I16, 2)
    pairs = emit.pointer(Field.VALUES, I16)

    def sums(row: Any, scratch: Any) -> Sequence[Any]:
        start, stop = (_bound(emit, Field.POINTERS, r) for r in (row, _next(emit, row)))
        begin = [emit.splat(_bias(emit, row), lanes)] * 4

        def step(index: Any, totals: Sequence[Any]) -> Sequence[Any]:
            one, other = rows(index, scratch)
            weights = emit.splat(emit.read(emit.at(pairs, index), I32), lanes)
            following: list[Any] = []
            for half in range(2):
                offset = constant(2 * lanes * half)
                first, second = (emit.read(emit.at(r, offset), words) for r in (one, other))
                for high in (False, True):
                    inputs = emit.interleave(first, second, high)
                    total = totals[len(following)]
                    following.append(_pair_dot(emit, total, inputs, weights, features))
            return following

        return emit.loop(start, stop, 2, step, begin)

    del build
    return sums


def _byte_sums(emit: Emitter, width: int, places: ir.Type, features: Features) -> Sums:
    build, lanes = emit.build, width // 4
    line = ir.VectorType(I8, width)
    rows = _rows_of(emit, width, places, I8, 4)
    values = emit.pointer(Field.VALUES, I8)
    row_scales, starts = emit.pointer(Field.ROW_SCALES, FLOAT), emit.pointer(Field.ROW_STARTS, I32)

    def sums(row: Any, scratch: Any) -> Sequence[Any]:
        start, stop = (_bound(emit, Field.POINTERS, r) for r in (row, _next(emit, row)))
        begin = [emit.splat(build.load(emit.at(starts, row)), lanes)] * 4

        def step(index: Any, totals: Sequence[Any]) -> Sequence[Any]:
            inputs = [emit.read(place, line) for place in rows(index, scratch)]
            weights = emit.splat(emit.read(emit.at(values, index), I32), lanes)
            quads = _quads(emit, inputs, lanes)
            return [_quad_dot(emit, total, quad, weights, features)
                    for total, quad in zip(totals, quads, strict=True)]  # fmt: skip

        totals = emit.loop(start, stop, STEP_OF_WEIGHTS, step, begin)
        scales = scales_after(emit, scratch, width)
        scale = emit.splat(build.load(emit.at(row_scales, row)), lanes)
        bias = emit.splat(_bias(emit, row), lanes)
        finished = []
        for i, total in enumerate(totals):
            of_tokens = emit.load(emit.at(scales, constant(i * lanes)), lanes)
            number = build.sitofp(total, vector(lanes))
            finished.append(emit.multiply_add(build.fmul(number, scale), of_tokens, bias))
        return finished

    return sums


def _next(emit: Emitter, row: Any) -> Any:
    return emit.build.add(row, constant(1))


def _quads(emit: Emitter, inputs: Sequence[Any], lanes: int) -> list[Any]:
    """Four vectors of bytes as four vectors of words with a byte of each."""
    one, two, three, four = inputs
    double = ir.VectorType(I16, 2 * lanes)
    word = ir.VectorType(I32, lanes)
    quads = []
    for high in (False, True):
        left = emit.build.bitcast(emit.interleave(one, two, high), double)
        right = emit.build.bitcast(emit.interleave(three, four, high), double)
        quads += [emit.build.bitcast(emit.interleave(left, right, up), word)
                  for up in (False, True)]  # fmt: skip
    return quads


_BITS = {16: 512, 8: 256, 4: 128}


def _pair_dot(emit: Emitter, total: Any, inputs: Any, weights: Any, features: Features) -> Any:
    """The total plus two products of bfloat16."""
    build, lanes = emit.build, total.type.count
    word = ir.VectorType(I32, lanes)
    if features.bf16:
        half = ir.VectorType(_BFLOAT, 2 * lanes)
        name = f"llvm.x86.avx512bf16.dpbf16ps.{_BITS[lanes]}"
        pairs = (build.bitcast(v, half) for v in (inputs, weights))
        return emit.call(name, total.type, total, *pairs)
    upper = ir.Constant(word, [0xFFFF0000] * lanes)
    sixteen = ir.Constant(word, [16] * lanes)
    inputs = build.bitcast(inputs, word)
    for part, by in ((build.shl, sixteen), (build.and_, upper)):
        one, other = (build.bitcast(part(v, by), vector(lanes)) for v in (inputs, weights))
        total = emit.multiply_add(one, other, total)
    return total


def _quad_dot(emit: Emitter, total: Any, inputs: Any, weights: Any, features: Features) -> Any:
    """The total plus four products of an unsigned and a signed byte."""
    build, lanes = emit.build, total.type.count
    if features.vnni:
        name = f"llvm.x86.avx512.vpdpbusd.{_BITS[lanes]}"
        return emit.call(name, total.type, total, inputs, weights)
    word = total.type
    eight, top = ir.Constant(word, [24] * lanes), ir.Constant(word, [255] * lanes)
    for byte in range(4):
        right = ir.Constant(word, [8 * byte] * lanes)
        left = ir.Constant(word, [24 - 8 * byte] * lanes)
        one = build.and_(build.lshr(inputs, right), top)
        other = build.ashr(build.shl(weights, left), eight)
        total = build.add(total, build.mul(one, other))
    return total


class _BFloat(ir.Type):  # type: ignore[misc]
    """The type of a bfloat16, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_BFLOAT: Any = _BFloat()
