"""The programs of the compiled kernel, as LLVM IR: pack the inputs, multiply them.

The product is Y = W X + bias, W [rows, columns] sparse by rows, X [columns, tokens]. A row of Y is
summed for a tile of up to 64 tokens at once, in registers: for each kept weight of the row, one
fused multiply-add of the tile's row of X. Reads from X are contiguous: nothing is gathered.
`tiles` reads an X packed by tiles and writes Y as [tokens, rows]. `planes` reads an X whose
features are planes (the channels of an image), each weight at an offset of its own, so that a
convolution needs no copies of its inputs (Park et al. 2017, "Faster CNNs with Direct Sparse
Convolutions and Guided Pruning", section 3.1), and writes Y the same way.

All functions are workers that take items of a job one by one, so that any number of threads can run
the same job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir

from slt_compress.runtime.kernels.job_layout import CHUNK, PANEL, WIDTHS, Field
from slt_compress.runtime.kernels.llvm import EIGHT, FLOAT, I32, I64, Emitter, constant, vector

_I16 = ir.IntType(16)
Item = Callable[[Any], None]
Nothing = tuple[()]


def program() -> str:
    """The IR of all kernels: `pack_W`, `tiles_W_16`, `tiles_W_32` and `planes_W` for each width."""
    module = ir.Module(name="slt_compress")
    for width in WIDTHS:
        _worker(module, f"pack_{width}", partial(_pack, width=width))
        for places in (_I16, I32):
            name = f"tiles_{width}_{places.width}"
            _worker(module, name, partial(_tiles, width=width, places=places))
        _worker(module, f"planes_{width}", partial(_planes, width=width))
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


def _pack(emit: Emitter, width: int) -> Item:
    """X [tokens, columns] as tiles [columns, width]; the last token is repeated past the end."""
    build, columns = emit.build, emit.field(Field.COLUMNS)
    source, packed = emit.pointer(Field.INPUTS, FLOAT), emit.pointer(Field.OUTPUTS, FLOAT)
    last = build.sub(emit.field(Field.TOKENS), constant(1))

    def item(number: Any) -> None:
        tile, start, stop = _chunk(emit, number, columns)
        first = build.add(emit.field(Field.FIRST), emit.times(tile, width))
        target = emit.at(packed, build.mul(first, columns))

        def token(index: Any) -> Any:
            return emit.at(source, build.mul(emit.least(build.add(first, index), last), columns))

        def block(column: Any, group: Any) -> None:
            tokens = [token(build.add(group, constant(i))) for i in range(EIGHT)]
            for half in range(0, PANEL, EIGHT):
                where = build.add(column, constant(half))
                turned = emit.transpose([emit.load(emit.at(t, where), EIGHT) for t in tokens])
                for i, values in enumerate(turned):
                    line = emit.times(build.add(where, constant(i)), width)
                    emit.store(values, emit.at(target, line, group))

        def single(column: Any, index: Any) -> None:
            value = build.load(emit.at(token(index), column))
            build.store(value, emit.at(target, emit.times(column, width), index))

        whole = build.sub(stop, build.srem(build.sub(stop, start), constant(PANEL)))
        emit.grid((start, whole, PANEL), (constant(0), constant(width), EIGHT), block)
        emit.grid((whole, stop, 1), (constant(0), constant(width), 1), single)

    return item


def _tiles(emit: Emitter, width: int, places: ir.Type) -> Item:
    """The product on packed tiles; sums go through a buffer, where they are transposed."""
    build, rows = emit.build, emit.field(Field.ROWS)
    inputs, outputs = emit.pointer(Field.INPUTS, FLOAT), emit.pointer(Field.OUTPUTS, FLOAT)
    space = build.alloca(ir.ArrayType(FLOAT, PANEL * width))
    space.align = 64
    buffer = build.bitcast(space, FLOAT.as_pointer())
    sums = _sums(emit, width, places, scale=width)

    def item(number: Any) -> None:
        tile, start, stop = _chunk(emit, number, rows)
        first = build.add(emit.field(Field.FIRST), emit.times(tile, width))
        tokens = emit.least(build.sub(emit.field(Field.TOKENS), first), constant(width))
        packed = emit.at(inputs, build.mul(first, emit.field(Field.COLUMNS)))
        written = emit.at(outputs, build.mul(first, rows))

        def panel(top: Any, _: Sequence[Any]) -> Nothing:
            height = emit.least(constant(PANEL), build.sub(stop, top))

            def line(index: Any, _: Sequence[Any]) -> Nothing:
                total = sums(build.add(top, index), packed)
                emit.store(total, emit.at(buffer, emit.times(index, width)))
                return ()

            emit.loop(constant(0), height, 1, line)
            _turn(emit, buffer, width, emit.at(written, top), (tokens, height, rows))
            return ()

        emit.loop(start, stop, PANEL, panel)

    return item


def _turn(
    emit: Emitter, buffer: Any, width: int, outputs: Any, extents: tuple[Any, Any, Any]
) -> None:
    """Write a panel [height, width] of sums as [tokens, rows], eight by eight where it is whole."""
    build = emit.build
    tokens, height, rows = extents
    even = build.sub(tokens, build.srem(tokens, constant(EIGHT)))
    even = build.select(build.icmp_signed("==", height, constant(PANEL)), even, constant(0))

    def block(group: Any, _: Sequence[Any]) -> Nothing:
        for half in range(0, PANEL, EIGHT):
            starts = [constant((half + i) * width) for i in range(EIGHT)]
            lines = [emit.load(emit.at(buffer, group, start), EIGHT) for start in starts]
            for i, values in enumerate(emit.transpose(lines)):
                token = build.mul(build.add(group, constant(i)), rows)
                emit.store(values, emit.at(outputs, token, constant(half)))
        return ()

    def single(token: Any, line: Any) -> None:
        value = build.load(emit.at(buffer, emit.times(line, width), token))
        build.store(value, emit.at(outputs, build.mul(token, rows), line))

    emit.loop(constant(0), even, EIGHT, block)
    emit.grid((even, tokens, 1), (constant(0), height, 1), single)


def _planes(emit: Emitter, width: int) -> Item:
    """The product on planes: tiles of each sample, of which the last may overwrite others."""
    build, rows, tiles = emit.build, emit.field(Field.ROWS), emit.field(Field.TILES)
    inputs, outputs = emit.pointer(Field.INPUTS, FLOAT), emit.pointer(Field.OUTPUTS, FLOAT)
    sums = _sums(emit, width, I32, scale=1)

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


def _sums(emit: Emitter, width: int, places: ir.Type, scale: int) -> Callable[[Any, Any], Any]:
    """A row of W times a tile of X, plus the bias: a vector of `width`.

    Narrow tiles sum in several vectors, because each sum has to wait for the one before it.
    """
    build, chains = emit.build, WIDTHS[0] // width
    pointers, bias = emit.pointer(Field.POINTERS, I32), emit.pointer(Field.BIAS, FLOAT)
    where, values = emit.pointer(Field.PLACES, places), emit.pointer(Field.VALUES, FLOAT)

    def begin(row: Any) -> Any:
        return build.sext(build.load(emit.at(pointers, row)), I64)

    def plus(index: Any, total: Any, inputs: Any) -> Any:
        place = build.zext(build.load(emit.at(where, index)), I64)
        values_of_x = emit.load(emit.at(inputs, emit.times(place, scale)), width)
        weight = emit.splat(build.load(emit.at(values, index)), width)
        return emit.multiply_add(weight, values_of_x, total)

    def sums(row: Any, inputs: Any) -> Any:
        start, stop = begin(row), begin(build.add(row, constant(1)))
        whole = build.sub(stop, build.srem(build.sub(stop, start), constant(chains)))
        zero = ir.Constant(vector(width), [0.0] * width)
        totals: Sequence[Any] = [emit.splat(build.load(emit.at(bias, row)), width)]
        totals = [*totals, *[zero] * (chains - 1)]

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
