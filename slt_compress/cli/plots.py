"""Plots in characters: the means of a comparison against the sparsity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from slt_compress.cli.screen import Text, stacked

# Size of a plot in characters, without its axes; one mark and one colour per method.
_WIDTH, _HEIGHT = 60, 14
_MARKS = "●▲■◆○△□◇"
_COLOURS = ("green", "magenta", "cyan", "yellow", "blue", "red")


def plot(points: Sequence[Mapping[str, Any]], title: str) -> Text:
    """Plot means against sparsity: a mark for each mean, joined by dots; the last is on top."""
    sparsities: list[float] = sorted({point["sparsity"] for point in points})
    means: list[float] = sorted(point["mean"] for point in points)
    left, right, bottom, top = sparsities[0], sparsities[-1], means[0], means[-1]
    span = (top - bottom) or 1.0
    cells: dict[tuple[int, int], tuple[str, str]] = {}

    def column(sparsity: float) -> int:
        return round((sparsity - left) / (right - left) * (_WIDTH - 1))

    def place(point: Mapping[str, Any]) -> tuple[int, int]:
        return column(point["sparsity"]), round((point["mean"] - bottom) / span * (_HEIGHT - 1))

    styles = {
        method: (_MARKS[index % len(_MARKS)], _COLOURS[index % len(_COLOURS)])
        for index, method in enumerate(dict.fromkeys(p["method"] for p in points))
    }
    curves = {
        method: sorted(place(p) for p in points if p["method"] == method) for method in styles
    }
    for method, curve in curves.items():
        for (x0, y0), (x1, y1) in pairwise(curve):
            for x in range(x0 + 1, x1):
                cells[x, round(y0 + (y1 - y0) * (x - x0) / (x1 - x0))] = ("·", styles[method][1])
    for method, curve in curves.items():
        cells |= dict.fromkeys(curve, styles[method])
    rows = [Text(title)]
    for y in reversed(range(_HEIGHT)):
        labelled = y in (0, _HEIGHT // 2, _HEIGHT - 1)
        row = Text(f"{bottom + span * y / (_HEIGHT - 1):9.4g} ┤" if labelled else f"{'│':>11}")
        for x in range(_WIDTH):
            row.append(*cells.get((x, y), (" ", "")))
        rows.append(row)
    rows += [Text(f"{'└':>11}{'─' * _WIDTH}"), Text(f"{' ' * 11}{_ticks(sparsities, column)}")]
    for method, (mark, colour) in styles.items():
        rows.append(Text(f"{' ' * 11}{mark} {method}", colour))
    return stacked(*rows, "")


def _ticks(sparsities: Sequence[float], column: Callable[[float], int]) -> str:
    """The sparsities below their columns; one that would overlap its neighbour is left out."""
    line = ""
    for sparsity in sparsities:
        label = f"{sparsity:g}"
        start = min(column(sparsity), _WIDTH - len(label))
        if not line or start > len(line):
            line = f"{line:<{start}}{label}"
    return line
