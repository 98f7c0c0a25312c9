"""Tickets as tables: a list of them, and the difference of two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from slt_compress.cli.report_view import GAP
from slt_compress.cli.screen import Text
from slt_compress.evidence.grouping import common_name
from slt_compress.evidence.verdicts import verdict_of
from slt_compress.storage.quantities import shortened, shortened_apart

if TYPE_CHECKING:
    from slt_compress.tickets.deriving import Difference, SiteDifference
    from slt_compress.tickets.listing import Listed

_NAME_AT_LEAST = 14
_WITH_DATE = 100  # columns from which there is room for the date


def ticket_table(listed: Sequence[Listed], width: int) -> Table:
    """A row for each ticket: name, method, sparsity, data set and what the mask costs."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    heads: tuple[str, ...] = ("ticket", "method", "sparsity", "dense → masked", "written")
    rows = [_row(entry) for entry in listed]
    if width < _WITH_DATE:
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < 2 else "right", no_wrap=True)
    used = sum(max(map(len, column)) for column in zip(heads[1:], *rows, strict=True))
    room = max(_NAME_AT_LEAST, width - used - GAP * len(heads))
    names = shortened_apart([entry.path.name for entry in listed], room)
    for name, row in zip(names, rows, strict=True):
        table.add_row(Text(name), *map(Text, row))
    return table


def _row(entry: Listed) -> tuple[str, ...]:
    day = entry.written[:16].replace("T", " ")
    if entry.sparsity is None:
        return "", "", "damaged", day
    verdict = verdict_of(entry.metrics or {}, {}, examples=None, task=None)
    if verdict is None:
        cost = "not measured"
    else:
        dense = "" if verdict.dense is None else f"{verdict.shown(verdict.dense)} → "
        cost = f"{verdict.metric} {dense}{verdict.shown(verdict.hard)}"
    return shortened(entry.method, 14), f"{100 * entry.sparsity:.2f} %", cost, day


def difference_table(result: Difference, width: int, *, full: bool = False) -> Table:
    """What two masks keep in each layer; equal layers of numbered blocks in one row."""
    groups = [[layer] for layer in result.layers] if full else _grouped(result.layers)
    rows = [_difference_row(group) for group in groups]
    heads = ("A keeps", "B keeps", "both", "overlap", "IoU")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    used = sum(max(map(len, column)) for column in zip(heads, *rows, strict=True))
    room = max(_NAME_AT_LEAST, width - used - GAP * (len(heads) + 1))
    found = [common_name([layer.name for layer in group]) for group in groups]
    for name, row in zip(shortened_apart(found, room), rows, strict=True):
        table.add_row(Text(name), *row)
    return table


def _grouped(layers: Sequence[SiteDifference]) -> list[list[SiteDifference]]:
    groups: dict[tuple[tuple[str, ...], int], list[SiteDifference]] = {}
    for layer in layers:
        parts = tuple("#" if part.isdecimal() else part for part in layer.name.split("."))
        groups.setdefault((parts, layer.total), []).append(layer)
    return list(groups.values())


def _difference_row(group: Sequence[SiteDifference]) -> tuple[str, ...]:
    ones, twos = (sum(layer.kept[side] for layer in group) for side in (0, 1))
    both = sum(layer.both for layer in group)
    either = ones + twos - both
    overlap, iou = both / ones if ones else 0.0, both / either if either else 1.0
    return f"{ones:,}", f"{twos:,}", f"{both:,}", f"{100 * overlap:.2f} %", f"{100 * iou:.2f} %"
