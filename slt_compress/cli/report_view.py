"""A report on the terminal: the verdict first, then the layers and the evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from slt_compress.artifacts import is_artifact
from slt_compress.cli.screen import Screen, Text
from slt_compress.cli.subjects import hanging, line_of
from slt_compress.evidence.grouping import (
    LayerGroup,
    grouped_layers,
    single_layers,
)
from slt_compress.evidence.reporting import Report
from slt_compress.evidence.telling import (
    RUNTIMES,
    outcome,
    searched,
    skipped_lines,
    source_line,
)
from slt_compress.storage.quantities import shortened_apart

_BAR, _WITH_BAR = 10, 100  # columns of the bar, and of a screen that has room for it
GAP = 3  # columns between two of a table
_TIMES = "×"  # noqa: RUF001


def print_report(
    screen: Screen, report: Report, path: Path, seconds: float | None, *, full: bool
) -> None:
    """Print a report; `full` shows every layer and parameter by itself."""
    for part in report_parts(report, path, seconds, width=screen.width, full=full):
        screen.print(part, soft_wrap=isinstance(part, Text))


def report_parts(
    report: Report, path: Path, seconds: float | None, *, width: int, full: bool = False
) -> Iterator[RenderableType]:
    """The parts of a report, from the verdict to the notes."""

    def line(subject: str, text: str, style: str = "") -> Text:
        return hanging(line_of(subject, text), width, style)

    yield line("artifact" if is_artifact(path) else "ticket", str(path))
    yield line("source", source_line(report))
    for subject, text in outcome(report):
        yield line(subject, text)
    yield line("search", searched(report, seconds))
    yield layer_table(report, width, full=full)
    if report.metrics or report.controls:
        yield _metric_table(report)
    yield _size_table(report.sizes)
    for subject, text in skipped_lines(report.skipped, full=full):
        yield line(subject, text)
    for warning in report.warnings:
        yield line("note", warning, "yellow")
    for text in report.expectations if full else (RUNTIMES,):
        yield line("expect", text)
    if not full and len(report.layers) > len(grouped_layers(report.layers)):
        yield line("", "every layer: --full; with images and curves: --html FILE")


def layer_table(report: Report, width: int, *, full: bool = False) -> Table:
    """The layers; equal ones of numbered blocks in one row, unless `full`."""
    groups = (single_layers if full else grouped_layers)(report.layers)
    several = any(len(group.layers) > 1 for group in groups)
    signed = bool(report.sparsity.get("flips"))
    rows = [_cells(group, several=several, signed=signed) for group in groups]
    heads = ["shape", *["layers"] * several, "gated", *["flips"] * signed, "sparsity"]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    bar = _BAR if width >= _WITH_BAR else 0
    columns = len(heads) + 1 + (bar > 0)
    room = max(8, width - sum(widths) - bar - GAP * columns)
    names = shortened_apart([group.name for group in groups], room)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 1), pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for head, least in zip(heads, widths, strict=True):
        table.add_column(head, justify="right", no_wrap=True, min_width=least)
    if bar:
        table.add_column("kept", width=bar)
    for name, group, cells in zip(names, groups, rows, strict=True):
        share = group.kept / group.total if group.total else 0.0
        drawn = [Text("█" * round(bar * share) or "▏", "cyan")] if bar else []
        table.add_row(Text(name), *cells, *drawn)
    return table


def _cells(group: LayerGroup, *, several: bool, signed: bool) -> list[str]:
    low, high = (f"{100 * value:.2f}" for value in group.sparsities)
    cells = [_TIMES.join(map(str, group.shape))]
    cells += [f"{len(group.layers):,}"] * several
    cells.append(f"{group.total:,}")
    cells += [f"{group.flips:,}"] * signed
    return [*cells, f"{low} %" if low == high else f"{low}-{high} %"]


def _metric_table(report: Report) -> Table:
    rows: dict[str, Mapping[str, Any]] = {
        **{name: value or {} for name, value in report.metrics.items()},
        **{f"control: {name}": value or {} for name, value in report.controls.items()},
    }
    names = sorted({key for value in rows.values() for key in value})
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="Metrics, of hard masks but for soft",
                  title_justify="left")  # fmt: skip
    table.add_column("masks", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for name, value in rows.items():
        table.add_row(name, *(f"{value[key]:.4f}" if key in value else "" for key in names))
    return table


def _size_table(sizes: Mapping[str, int]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title="Bytes of the model's tensors",
                  title_justify="left")  # fmt: skip
    table.add_column("format")
    table.add_column("bytes", justify="right")
    table.add_column("of dense", justify="right")
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}", f"{100 * size / sizes['dense']:.1f} %")
    return table


def tickets_side_by_side(rows: Sequence[tuple[str, Report]], width: int) -> Table:
    """Several reports, a row for each."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("ticket", no_wrap=True)
    for head in ("method", "sparsity", "metric", "dense", "masked"):
        table.add_column(head, justify="right", no_wrap=True)
    cells = [_row(report) for _, report in rows]
    used = sum(max(map(len, column)) for column in zip(*cells, strict=True))
    names = shortened_apart([name for name, _ in rows], max(12, width - used - 36))
    for name, row in zip(names, cells, strict=True):
        table.add_row(Text(name), *row)
    return table


def _row(report: Report) -> list[str]:
    verdict = report.verdict
    cells = [report.search.get("method", "?"), f"{100 * report.sparsity['achieved']:.2f} %"]
    if verdict is None:
        return [*cells, "", "", ""]
    dense = "" if verdict.dense is None else verdict.shown(verdict.dense)
    return [*cells, verdict.metric, dense, verdict.shown(verdict.hard)]
