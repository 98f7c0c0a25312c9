"""Output for the terminal: live progress, and results as tables."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from slt_compress.artifacts import Artifact
from slt_compress.cli.log_lines import log_lines
from slt_compress.cli.plain_lines import say
from slt_compress.cli.plan_outline import outline
from slt_compress.cli.plots import plot
from slt_compress.cli.screen import Screen, Text, stacked
from slt_compress.evidence.checks import Verification
from slt_compress.evidence.reporting import Report
from slt_compress.searching.comparing import LESS_IS_BETTER, Comparison, OnRow, Row
from slt_compress.searching.planning import Plan
from slt_compress.searching.search import OnStep
from slt_compress.searching.state import Step

_BAR = 20
_TIMES = "×"  # noqa: RUF001
_LOG_LINES = 20


@contextmanager
def search_progress(*, quiet: bool) -> Iterator[OnStep | None]:
    """Show the steps of a search on stderr: a live bar, or a few lines if stderr is a file."""
    console = Screen(stderr=True)
    with log_lines(quiet=quiet):
        if quiet:
            yield None
            return
        if not console.is_terminal:
            yield _print_some
            return
        with _live(console) as (_, on_step):
            yield on_step


@contextmanager
def compare_progress(*, quiet: bool) -> Iterator[tuple[OnStep | None, OnRow | None]]:
    """Print a line on stderr for each search of a comparison; a terminal shows a bar as well."""
    console = Screen(stderr=True)
    with log_lines(quiet=quiet):
        if quiet:
            yield None, None
            return
        if not console.is_terminal:
            yield None, lambda *row: say(_row_line(*row), err=True)
            return
        with _live(console) as (bars, on_step):
            yield on_step, lambda *row: bars.console.print(Text(_row_line(*row)), soft_wrap=True)


def _row_line(row: Row, number: int, total: int) -> str:
    result = row.error
    if row.hard is not None:
        result = ", ".join(f"{name} {value:.4f}" for name, value in row.hard.items())
    what = f"{row.method} at {row.sparsity}, seed {row.seed}"
    return f"[{number}/{total}] {what}: {result} ({row.seconds:.1f} s)"


@contextmanager
def _live(console: Screen) -> Iterator[tuple[Progress, OnStep]]:
    """A bar over the steps of the current search."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("step {task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar: TaskID = progress.add_task("searching", total=None, figures="")
        yield (
            progress,
            lambda step: progress.update(
                bar,
                total=step.total,
                completed=step.index + 1,
                figures=_figures(step),
                description="measuring" if step.index + 1 == step.total else "searching",
            ),
        )


def _stdout() -> Screen:
    """Standard output. A file or pipe has no width, and in 80 columns long names would fold."""
    console = Screen()
    wide = console.is_terminal or "COLUMNS" in os.environ
    return console if wide else Screen(width=120)


def _figures(step: Step) -> str:
    metric = "" if step.soft_metric is None else f" soft {step.soft_metric:.3f}"
    return f"density {step.density:.3f} → {step.target:.3f} loss {step.loss:.4f}{metric}"


def _print_some(step: Step) -> None:
    last = step.index + 1 == step.total
    if last or step.index % max(1, step.total // _LOG_LINES) == 0:
        left = step.seconds / (step.index + 1) * (step.total - step.index - 1)
        line = f"step {step.index + 1}/{step.total} {_figures(step)} left {left:.0f} s"
        say(line, err=True)
    if last:
        say("measuring the mask and its controls", err=True)


def print_report(report: Report) -> None:
    """Print a report on stdout: layers, totals, metrics, controls, sizes, skipped parameters."""
    console = _stdout()
    console.print(_layer_table(report))
    console.print(_totals(report))
    console.print(_metric_table(report))
    sizes = Table("format", "bytes", "of dense", title="Bytes of the model's tensors")
    for name, size in report.sizes.items():
        sizes.add_row(name, f"{size:,}", f"{size / report.sizes['dense']:.1%}")
    console.print(sizes)
    if report.skipped:
        skipped = Table("parameter", "why it is not gated", title="Skipped")
        for name, reason in report.skipped.items():
            skipped.add_row(name, reason)
        console.print(skipped)
    for label, lines in (("note", report.warnings), ("expect", report.expectations)):
        for line in lines:
            console.print(Text(f"{label}: {line}"), soft_wrap=True)


def _layer_table(report: Report) -> Table:
    table = Table(title=f"{report.source.get('source')}: sparsity per layer")
    table.add_column("layer", overflow="fold")
    signed = bool(report.sparsity.get("flips"))
    for name in ("shape", "gated", "kept", *["flips"] * signed, "sparsity"):
        table.add_column(name, justify="right")
    table.add_column("kept share", min_width=_BAR)
    for layer in report.layers:
        density = 1.0 - layer["sparsity"]
        table.add_row(
            layer["name"], _TIMES.join(map(str, layer["shape"])), f"{layer['total']:,}",
            f"{layer['kept']:,}", *[f"{layer.get('flips', 0):,}"] * signed,
            f"{layer['sparsity']:.2%}",
            "█" * round(_BAR * density) or "▏",
        )  # fmt: skip
    return table


def _totals(report: Report) -> Text:
    sparsity = report.sparsity
    flips = sparsity.get("flips", 0)
    told = [
        f"kept {sparsity['kept']:,} of {sparsity['gated']:,} gated weights: "
        f"{sparsity['achieved']:.4%} sparse (target {sparsity['target']:.4%}); removed "
        f"{sparsity['achieved_parameters']:.2%} of all {sparsity['parameters']:,} parameters"
    ]
    if flips:
        told.append(f"flips: {flips:,} of the kept weights have their sign flipped")
    gains, tuned = sparsity.get("gains", 0), sparsity.get("tuned", 0)
    if gains or tuned:
        told.append(
            f"tuned: {gains:,} gains of kept units and {tuned:,} norms and biases were trained "
            f"beside the mask, {sparsity.get('tuned_parameters', 0.0):.2%} of all parameters"
        )
    pattern, units = report.recipe.get("pattern"), sparsity.get("units")
    if units:
        told.append(f"kept {units['kept']:,} of {units['gated']:,} units of the pattern {pattern}")
    permuted = sum(bool(layer.get("permuted")) for layer in report.layers)
    if permuted:
        told.append(f"{permuted} of {len(report.layers)} masks are {pattern} in a stored order")
    return stacked(*told, "")


def _metric_table(report: Report) -> Table:
    rows: dict[str, Mapping[str, Any]] = {
        **{name: value or {} for name, value in report.metrics.items()},
        **{f"control: {name}": value or {} for name, value in report.controls.items()},
    }
    names = sorted({key for value in rows.values() for key in value})
    table = Table("masks", *names, title="Metrics (of hard masks unless marked soft)")
    for name, value in rows.items():
        table.add_row(name, *(f"{value[key]:.4f}" if key in value else "" for key in names))
    return table


def print_plan(plan: Plan) -> None:
    """Print the outline of a plan on stdout."""
    console = _stdout()
    for part in outline(plan):
        console.print(part, soft_wrap=isinstance(part, Text))


def print_artifact(artifact: Artifact, loading: list[str], notes: Sequence[str]) -> None:
    """Print on stderr what an export wrote: shrunk layers, bytes, ratio to dense, how to load."""
    console = Screen(stderr=True)
    for line in notes:
        if line.startswith(("shrunk:", "not shrunk:")):
            console.print(Text(line), soft_wrap=True)
    ratio = artifact.nbytes / max(1, artifact.dense_nbytes)
    console.print(
        Text(
            f"wrote {artifact.format}: {artifact.nbytes:,} bytes, {ratio:.1%} of the "
            f"{artifact.dense_nbytes:,} bytes of the dense tensors; open it with"
        ),
        soft_wrap=True,
    )
    for line in loading:
        if line and not line.startswith("```"):
            console.print(Text(f"  {line}"), soft_wrap=True)


def print_verification(verification: Verification) -> None:
    """Print one line per check on stdout."""
    console = _stdout()
    for check in verification.checks:
        mark = Text("ok    ", style="green") if check.ok else Text("FAILED", style="bold red")
        console.print(mark, Text(f"{check.name}: {check.detail}"), soft_wrap=True)


def print_metrics(measured: Mapping[str, Any]) -> None:
    """Print the metrics of one model on stdout."""
    console = _stdout()
    table = Table("metric", "value", title=f"{measured['examples']:,} examples")
    for name, value in measured["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison: its summary as a table and, if possible, a plot, then its failures."""
    console = _stdout()
    summary, metric = comparison.summary(), comparison.metric
    table = Table(title=f"{metric or 'nothing to compare'} of the hard masks{_better(metric)}")
    for name in ("method", "sparsity", "mean", "± std", "seeds", "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for entry in summary:
        seconds = [
            row.seconds
            for row in comparison.rows
            if row.hard is not None
            and (row.method, row.sparsity) == (entry["method"], entry["sparsity"])
        ]
        table.add_row(
            entry["method"], f"{entry['sparsity']:g}",
            "failed" if entry["mean"] is None else f"{entry['mean']:.4f}",
            "" if entry["std"] is None else f"± {entry['std']:.4f}",
            str(entry["seeds"]), f"{sum(seconds) / len(seconds):.1f}" if seconds else "",
        )  # fmt: skip
    console.print(table)
    points = [entry for entry in summary if entry["mean"] is not None]
    if len({entry["sparsity"] for entry in points}) > 1:
        console.print(plot(points, f"{metric} against sparsity{_better(metric)}"), soft_wrap=True)
    for row in comparison.rows:
        if row.error is not None:
            failed = f"failed: {row.method} at {row.sparsity:g}, seed {row.seed}: {row.error}"
            console.print(Text(failed), soft_wrap=True)
    console.print(Text(f"rows and tickets: {comparison.folder}"), soft_wrap=True)


def _better(metric: str | None) -> str:
    return " (less is better)" if metric in LESS_IS_BETTER else ""
