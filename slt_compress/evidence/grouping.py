"""Grouping: equal layers of numbered blocks as one row of a report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from slt_compress.evidence.reporting import LayerRow

_LISTED = 3  # numbers without a run that are named one by one


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers of one shape whose names differ in numbers alone.

    Attributes:
        name: theirs, with a run such as `0-11` where the numbers differ.
        shape: of each.
        layers: the rows of the report that this one stands for, at least one.
    """

    name: str
    shape: tuple[int, ...]
    layers: tuple[LayerRow, ...]

    @property
    def total(self) -> int:
        """Gated weights of all of them."""
        return sum(layer["total"] for layer in self.layers)

    @property
    def kept(self) -> int:
        """Kept weights of all of them."""
        return sum(layer["kept"] for layer in self.layers)

    @property
    def flips(self) -> int:
        """Kept weights of all of them whose sign is flipped."""
        return sum(layer.get("flips", 0) for layer in self.layers)

    @property
    def sparsities(self) -> tuple[float, float]:
        """The lowest and the highest sparsity among them."""
        found = [layer["sparsity"] for layer in self.layers]
        return min(found), max(found)


def grouped_layers(layers: Sequence[LayerRow]) -> list[LayerGroup]:
    """The rows of a report in groups, in the order of the first of each."""
    groups: dict[tuple[tuple[str, ...], tuple[int, ...]], list[LayerRow]] = {}
    for layer in layers:
        parts = tuple("#" if part.isdecimal() else part for part in layer["name"].split("."))
        groups.setdefault((parts, tuple(layer["shape"])), []).append(layer)
    return [
        LayerGroup(name=common_name([layer["name"] for layer in rows]), shape=shape,
                   layers=tuple(rows))
        for (_, shape), rows in groups.items()
    ]  # fmt: skip


def single_layers(layers: Sequence[LayerRow]) -> list[LayerGroup]:
    """Each row of a report as a group of its own."""
    return [
        LayerGroup(name=layer["name"], shape=tuple(layer["shape"]), layers=(layer,))
        for layer in layers
    ]


def common_name(names: Sequence[str]) -> str:
    """One name for names that differ in numbers alone, such as `blocks.0-11.fc.weight`."""
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(_run(dict.fromkeys(column)) for column in columns)


def _run(parts: Iterable[str]) -> str:
    """`5`, `0-11` for numbers in a row, else the first few."""
    found = list(parts)
    if len(found) == 1 or not all(part.isdecimal() for part in found):
        return found[0]
    numbers = sorted({int(part) for part in found})
    if all(second == first + 1 for first, second in pairwise(numbers)):
        return f"{numbers[0]}-{numbers[-1]}"
    more = ",…" if len(numbers) > _LISTED else ""
    return ",".join(map(str, numbers[:_LISTED])) + more


def grouped_names(names: Iterable[str]) -> list[tuple[str, int]]:
    """Names that differ in numbers alone as one, with how many they are."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        parts = tuple("#" if part.isdecimal() else part for part in name.split("."))
        groups.setdefault(parts, []).append(name)
    return [(common_name(group), len(group)) for group in groups.values()]
