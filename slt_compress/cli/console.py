"""Output for the terminal: live progress, and results as tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from slt_compress.artifacts import Artifact
from slt_compress.cli.plan_outline import outline
from slt_compress.cli.plots import plot
from slt_compress.cli.screen import Screen, Text
from slt_compress.evidence.checks import Verification
from slt_compress.searching.comparing import LESS_IS_BETTER, Comparison
from slt_compress.searching.planning import Plan

_BAR = 20
_TIMES = "×"  # noqa: RUF001
_LOG_LINES = 20


def standard_output() -> Screen:
    """Standard output. A file or pipe has no width, and in 80 columns long names would fold."""
    console = Screen()
    wide = console.is_terminal or "COLUMNS" in os.environ
    return console if wide else Screen(width=120)


def print_plan(plan: Plan, *, full: bool = False, precision: str = "no") -> None:
    """Print the outline of a plan on stdout."""
    console = standard_output()
    for part in outline(plan, width=console.width, full=full, precision=precision):
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
    """Print on stdout what was proved, and a line for each check."""
    console = standard_output()
    bad = sum(not check.ok for check in verification.checks)
    what = "ticket" if (verification.path / "ticket.json").is_file() else "exported folder"
    if bad:
        verdict = Text(f"NOT PROVED: {bad} of {len(verification.checks)} checks failed", "bold red")
    else:
        verdict = Text(f"proved: all {len(verification.checks)} checks passed", "bold green")
    console.print(Text(f"{what} {verification.path}"), soft_wrap=True)
    console.print(verdict, soft_wrap=True)
    for check in verification.checks:
        mark = Text("ok    ", style="green") if check.ok else Text("FAILED", style="bold red")
        console.print(mark, Text(f"{check.name}: {check.detail}"), soft_wrap=True)


def print_metrics(measured: Mapping[str, Any]) -> None:
    """Print the metrics of one model on stdout."""
    console = standard_output()
    table = Table("metric", "value", title=f"{measured['examples']:,} examples")
    for name, value in measured["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)


def print_comparison(comparison: Comparison) -> None:
    """Print a comparison: its summary as a table and, if possible, a plot, then its failures."""
    console = standard_output()
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
