"""The programs of the compiled kernel, as LLVM IR.

The product is Y = W X + bias, W [rows, columns] sparse by rows, X [columns, tokens]. A row of Y is
summed for a tile of up to 64 tokens at once, in registers. Reads from X are contiguous: nothing is
gathered. `linear` packs an X of [tokens, columns] by tiles, each in memory of the thread that then
multiplies it, and writes Y as [tokens, rows]. `planes` reads an X whose features are planes (the
channels of an image), each weight at an offset of its own, so that a convolution needs no copies of
its inputs (Park et al. 2017, "Faster CNNs with Direct Sparse Convolutions and Guided Pruning",
section 3.1), and writes Y the same way. `vector` multiplies one token.

All functions are workers that take items of a job one by one, so that any number of threads can run
the same job, and a thread that is held up leaves its share to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir

from slt_compress.runtime.kernels.dots import Features, float_sums, sums_of
from slt_compress.runtime.kernels.job_layout import CHUNK, LANES, PANEL, WIDTHS, Field
from slt_compress.runtime.kernels.llvm import FLOAT, I32, I64, Emitter, constant
from slt_compress.runtime.kernels.packing import I8, I16, packer

Item = Callable[[Any], None]
Nothing = tuple[()]
# Sums that a single token is split into, as each has to wait for the one before it.
_CHAINS = 8


def program(kind: str, features: Features, widest: int) -> str:
    """The IR of all kernels of a kind, each called `KIND_WIDTH`.

    Kinds are `linear-PRECISION-BITS` and `vector-BITS`, where BITS are those of a place, and
    `planes`. Lower precisions use vectors of up to `widest` lanes.
    """
    module = ir.Module(name="slt_compress")
    name, *parts = kind.split("-")
    if name == "planes":
        for width in WIDTHS:
            _worker(module, f"{kind}_{width}", partial(_planes, width=width))
        return str(module)
    places = {"16": I16, "32": I32}[parts[-1]]
    if name == "vector":
        _worker(module, f"{kind}_1", partial(_vector, places=places))
        return str(module)
    narrow = [4 * lanes for lanes in LANES if lanes <= widest]
    for width in WIDTHS if parts[0] == "fp32" else narrow:
        make = partial(_linear, precision=parts[0], width=width, places=places, features=features)
        _worker(module, f"{kind}_{width}", make)
    return str(module)


def _worker(module: ir.Module, name: str, make: Callable[[Emitter], Item]) -> None:
    """A function that runs items of a job until none is left."""
    emit = Emitter(module, name)
    build, items, taken = emit.build, emit.field(Field.ITEMS), emit.build.alloca(I64)
    item = make(emit)

    def more() -> Any:
        build.store(emit.take(Field.NEXT), taken)
        return build.icmp_signed("<", build.load(taken), items)

    emit.while_(more, lambda: item(build.load(taken)))
    build.ret_void()


def _linear(emit: Emitter, precision: str, width: int, places: ir.Type, features: Features) -> Item:
    """An item is a tile and a part of the rows; the tile is packed if it is not the one before."""
    build, rows = emit.build, emit.field(Field.ROWS)
    outputs, parts = emit.pointer(Field.OUTPUTS, FLOAT), emit.field(Field.PARTS)
    bounds = emit.pointer(Field.BOUNDS, I32)
    slot = build.mul(emit.take(Field.SLOT), emit.field(Field.SCRATCH_STEP))
    scratch = emit.at(emit.pointer(Field.SCRATCH, I8), slot)
    packed = build.alloca(I64)
    build.store(constant(-1), packed)
    space = build.alloca(ir.ArrayType(FLOAT, PANEL * width))
    space.align = 64
    buffer = build.bitcast(space, FLOAT.as_pointer())
    pack = packer(emit, precision, width)
    sums = sums_of(emit, precision, width, places, features)

    def item(number: Any) -> None:
        tile, part = build.sdiv(number, parts), build.srem(number, parts)
        start, stop = (
            build.sext(build.load(emit.at(bounds, place)), I64)
            for place in (part, build.add(part, constant(1)))
        )
        first = build.add(emit.field(Field.FIRST), emit.times(tile, width))
        with build.if_then(build.icmp_signed("!=", tile, build.load(packed))):
            pack(first, scratch)
            build.store(tile, packed)
        tokens = emit.least(build.sub(emit.field(Field.TOKENS), first), constant(width))
        written = emit.at(outputs, build.mul(first, rows))

        def panel(top: Any, _: Sequence[Any]) -> Nothing:
            height = emit.least(constant(PANEL), build.sub(stop, top))

            def line(index: Any, _: Sequence[Any]) -> Nothing:
                place = emit.at(buffer, emit.times(index, width))
                for total in sums(build.add(top, index), scratch):
                    emit.store(total, place)
                    place = emit.at(place, constant(total.type.count))
                return ()

            emit.loop(constant(0), height, 1, line)
            _turn(emit, buffer, width, emit.at(written, top), (tokens, height, rows))
            return ()

        emit.loop(start, stop, PANEL, panel)

    return item


def _turn(
    emit: Emitter, buffer: Any, width: int, outputs: Any, extents: tuple[Any, Any, Any]
) -> None:
    """Write a panel [height, width] of sums as [tokens, rows], in blocks where it is whole.

    A block is of 16 x 16, a cache line of the outputs for each token, or of 8 x 8.
    """
    build, size = emit.build, min(width, PANEL)
    tokens, height, rows = extents
    even = build.sub(tokens, build.srem(tokens, constant(size)))
    even = build.select(build.icmp_signed("==", height, constant(PANEL)), even, constant(0))

    def block(group: Any, _: Sequence[Any]) -> Nothing:
        for half in range(0, PANEL, size):
            starts = [constant((half + i) * width) for i in range(size)]
            lines = [emit.load(emit.at(buffer, group, start), size) for start in starts]
            for i, values in enumerate(emit.transpose(lines)):
                token = build.mul(build.add(group, constant(i)), rows)
                emit.store(values, emit.at(outputs, token, constant(half)))
        return ()

    def single(token: Any, line: Any) -> None:
        value = build.load(emit.at(buffer, emit.times(line, width), token))
        build.store(value, emit.at(outputs, build.mul(token, rows), line))

    emit.loop(constant(0), even, size, block)
    emit.grid((even, tokens, 1), (constant(0), height, 1), single)


def _vector(emit: Emitter, places: ir.Type) -> Item:
    """The product with one token, whose inputs are read in place; an item is a part of the rows."""
    build = emit.build
    inputs, outputs = emit.pointer(Field.INPUTS, FLOAT), emit.pointer(Field.OUTPUTS, FLOAT)
    where, values = emit.pointer(Field.PLACES, places), emit.pointer(Field.VALUES, FLOAT)
    pointers, stops = emit.pointer(Field.POINTERS, I32), emit.pointer(Field.STOPS, I32)
    bounds, bias = emit.pointer(Field.BOUNDS, I32), emit.pointer(Field.BIAS, FLOAT)

    def wide(array: Any, index: Any) -> Any:
        return build.sext(build.load(emit.at(array, index)), I64)

    def plus(index: Any, total: Any) -> Any:
        place = build.zext(build.load(emit.at(where, index)), I64)
        return emit.multiply_add(
            build.load(emit.at(values, index)), build.load(emit.at(inputs, place)), total
        )

    def line(row: Any, _: Sequence[Any]) -> Nothing:
        start, stop = wide(pointers, row), wide(stops, row)
        whole = build.sub(stop, build.srem(build.sub(stop, start), constant(_CHAINS)))
        zeros = [ir.Constant(FLOAT, 0.0)] * (_CHAINS - 1)
        totals = emit.loop(
            start, whole, _CHAINS,
            lambda i, of: [plus(build.add(i, constant(k)), t) for k, t in enumerate(of)],
            [build.load(emit.at(bias, row)), *zeros],
        )  # fmt: skip
        rest = emit.loop(whole, stop, 1, lambda i, of: [plus(i, of[0])], totals[:1])
        totals = [*rest, *totals[1:]]
        while len(totals) > 1:
            pairs = zip(totals[::2], totals[1::2], strict=True)
            totals = [build.fadd(one, other) for one, other in pairs]
        build.store(totals[0], emit.at(outputs, row))
        return ()

    def item(number: Any) -> None:
        start, stop = wide(bounds, number), wide(bounds, build.add(number, constant(1)))
        emit.loop(start, stop, 1, line)

    return item


def _planes(emit: Emitter, width: int) -> Item:
    """The product on planes: tiles of each sample, of which the last may overwrite others."""
    build, rows, tiles = emit.build, emit.field(Field.ROWS), emit.field(Field.TILES)
    inputs, outputs = emit.pointer(Field.INPUTS, FLOAT), emit.pointer(Field.OUTPUTS, FLOAT)
    sums = float_sums(emit, width, I32, scale=1)

    def item(number: Any) -> None:
        place, start, stop = _chunk(emit, number, rows)
        sample, tile = build.sdiv(place, tiles), build.srem(place, tiles)
        first = build.add(emit.field(Field.FIRST), build.mul(tile, emit.field(Field.STEP)))
        read = emit.at(inputs, build.mul(sample, emit.field(Field.INPUT_SAMPLE)), first)
        written = emit.at(outputs, build.mul(sample, emit.field(Field.OUTPUT_SAMPLE)), first)

        def line(row: Any, _: Sequence[Any]) -> Nothing:
            emit.store(
                sums(row, read), emit.at(written, build.mul(row, emit.field(Field.OUTPUT_ROW)))
            )
            return ()

        emit.loop(start, stop, 1, line)

    return item


def _chunk(emit: Emitter, number: Any, length: Any) -> tuple[Any, Any, Any]:
    """Which tile an item belongs to, and its start and stop along the other dimension."""
    build = emit.build
    chunks = build.sdiv(build.add(length, constant(CHUNK - 1)), constant(CHUNK))
    start = emit.times(build.srem(number, chunks), CHUNK)
    stop = emit.least(build.add(start, constant(CHUNK)), length)
    return build.sdiv(number, chunks), start, stop
