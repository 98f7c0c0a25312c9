"""Emit LLVM IR: loops, vectors and transpositions, on llvmlite's builder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

FLOAT, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
# Rows and columns of a transposition: eight floats are a register of AVX, two of SSE or NEON.
EIGHT = 8


def constant(value: int) -> ir.Constant:
    """An i64."""
    return ir.Constant(I64, value)


def vector(width: int) -> ir.VectorType:
    """A vector of floats; LLVM spreads it over as many registers as it takes."""
    return ir.VectorType(FLOAT, width)


class Emitter:
    """A function `void name(int64 *job)` that is being built."""

    def __init__(self, module: ir.Module, name: str) -> None:
        self.module = module
        self.function = ir.Function(
            module, ir.FunctionType(ir.VoidType(), [I64.as_pointer()]), name
        )
        self.build = ir.IRBuilder(self.function.append_basic_block("entry"))

    def field(self, index: int) -> Any:
        """The number at a place of the job."""
        return self.build.load(self.build.gep(self.function.args[0], [constant(index)]))

    def pointer(self, index: int, of: ir.Type) -> Any:
        """The address at a place of the job."""
        return self.build.inttoptr(self.field(index), of.as_pointer())

    def take(self, index: int) -> Any:
        """The number at a place of the job, which is incremented atomically."""
        place = self.build.gep(self.function.args[0], [constant(index)])
        return self.build.atomic_rmw("add", place, constant(1), "monotonic")

    def at(self, base: Any, *offsets: Any) -> Any:
        """The address `base` plus the sum of the offsets, in elements."""
        for offset in offsets:
            base = self.build.gep(base, [offset])
        return base

    def least(self, first: Any, second: Any) -> Any:
        """The smaller of two numbers."""
        return self.build.select(self.build.icmp_signed("<", first, second), first, second)

    def times(self, number: Any, factor: int) -> Any:
        """A number times a constant."""
        return self.build.mul(number, constant(factor))

    def load(self, address: Any, width: int) -> Any:
        """A vector from any address of floats."""
        place = self.build.bitcast(address, vector(width).as_pointer())
        return self.build.load(place, align=4)

    def store(self, value: Any, address: Any) -> None:
        """A vector to any address of floats."""
        place = self.build.bitcast(address, value.type.as_pointer())
        self.build.store(value, place, align=4)

    def read(self, address: Any, of: ir.Type) -> Any:
        """A value of any type from an address that need not be aligned."""
        return self.build.load(self.build.bitcast(address, of.as_pointer()), align=1)

    def write(self, value: Any, address: Any) -> None:
        """A value of any type to an address that need not be aligned."""
        self.build.store(value, self.build.bitcast(address, value.type.as_pointer()), align=1)

    def call(self, name: str, result: ir.Type, *arguments: Any) -> Any:
        """An intrinsic function of LLVM."""
        if name not in self.module.globals:
            ir.Function(self.module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.build.call(self.module.globals[name], arguments)

    def interleave(self, one: Any, other: Any, high: bool) -> Any:
        """Elements of two vectors in turn, of the lower or the higher half of each 16 bytes."""
        lane = 128 // one.type.element.width
        first = lane // 2 if high else 0
        places = [
            start + first + i // 2 + (one.type.count if i % 2 else 0)
            for start in range(0, one.type.count, lane)
            for i in range(lane)
        ]
        return self.build.shuffle_vector(one, other, _lanes(places))

    def reduce(self, values: Any, name: str | None) -> Any:
        """All elements of a vector in one, by an intrinsic function of two, or added."""
        one = self.build.extract_element(values, ir.Constant(I32, 0))
        for i in range(1, values.type.count):
            other = self.build.extract_element(values, ir.Constant(I32, i))
            if name is None:
                one = self.build.fadd(one, other)
            else:
                one = self.call(name, one.type, one, other)
        return one

    def splat(self, value: Any, width: int) -> Any:
        """A vector with the same number in every lane."""
        empty = ir.Constant(ir.VectorType(value.type, width), ir.Undefined)
        one = self.build.insert_element(empty, value, ir.Constant(I32, 0))
        return self.build.shuffle_vector(one, empty, _lanes([0] * width))

    def while_(self, test: Callable[[], Any], body: Callable[[], None]) -> None:
        """Repeat `body` as long as `test` gives true."""
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        self.build.branch(head)
        self.build.position_at_end(head)
        self.build.cbranch(test(), inside, after)
        self.build.position_at_end(inside)
        body()
        self.build.branch(head)
        self.build.position_at_end(after)

    def loop(
        self,
        start: Any,
        stop: Any,
        step: int,
        body: Callable[[Any, Sequence[Any]], Sequence[Any]],
        carried: Sequence[Any] = (),
    ) -> Sequence[Any]:
        """Count from `start` to below `stop`; `body` maps the carried values to new ones."""
        before = self.build.block
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        self.build.branch(head)
        self.build.position_at_end(head)
        index = self.build.phi(I64)
        index.add_incoming(start, before)
        values = [self.build.phi(value.type) for value in carried]
        for value, first in zip(values, carried, strict=True):
            value.add_incoming(first, before)
        self.build.cbranch(self.build.icmp_signed("<", index, stop), inside, after)
        self.build.position_at_end(inside)
        new = body(index, values)
        index.add_incoming(self.build.add(index, constant(step)), self.build.block)
        for value, following in zip(values, new, strict=True):
            value.add_incoming(following, self.build.block)
        self.build.branch(head)
        self.build.position_at_end(after)
        return values

    def grid(
        self,
        outer: tuple[Any, Any, int],
        inner: tuple[Any, Any, int],
        body: Callable[[Any, Any], None],
    ) -> None:
        """Two loops, each given as (start, stop, step), one inside the other."""

        def line(first: Any, _: Sequence[Any]) -> tuple[()]:
            def point(second: Any, _: Sequence[Any]) -> tuple[()]:
                body(first, second)
                return ()

            self.loop(*inner, point)
            return ()

        self.loop(*outer, line)

    def multiply_add(self, first: Any, second: Any, total: Any) -> Any:
        """`first * second + total`, rounded once if the processor can do it in one step."""
        many = isinstance(total.type, ir.VectorType)
        name = f"llvm.fmuladd.v{total.type.count}f32" if many else "llvm.fmuladd.f32"
        return self.call(name, total.type, first, second, total)

    def transpose(self, rows: Sequence[Any]) -> list[Any]:
        """Transpose n vectors of n elements, exchanging halves, quarters and so on."""
        rows, size = list(rows), len(rows)
        distance = size // 2
        while distance:
            for i in range(size):
                if i & distance:
                    continue
                low, high = rows[i], rows[i + distance]
                left = [j if not j & distance else size + j - distance for j in range(size)]
                right = [j + distance if not j & distance else size + j for j in range(size)]
                rows[i] = self.build.shuffle_vector(low, high, _lanes(left))
                rows[i + distance] = self.build.shuffle_vector(low, high, _lanes(right))
            distance //= 2
        return rows


def _lanes(places: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(I32, len(places)), list(places))
