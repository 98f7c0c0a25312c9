"""The command `bench`: the speed and memory of a ticket or artifact."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import Json, Newest, Origin, listed
from slt_compress.cli.own_modules import in_python

if TYPE_CHECKING:
    from rich.table import Table

    from slt_compress.runtime.benching import Bench


def bench(
    path: Newest = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8",
    origin: Origin = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Number of torch threads; default: torch's own.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Largest number of interleaved rounds.")] = 15,
    against: Annotated[
        str | None,
        typer.Option(help="Measure other runtimes too: onnxruntime, openvino, or both."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the dense origin and every runtime, interleaved, on this CPU, with their memory."""
    batches = _sizes(batch)
    rivals = [] if against is None else listed(against, "--against")
    # the profiler that measures memory reads this when it is first used
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    import torch

    from slt_compress.runtime.benching import bench_path
    from slt_compress.tickets import newest

    if threads is not None:
        torch.set_num_threads(threads)
    folder = newest(Path("tickets")) if path is None else path
    with in_python("bench"):
        measured = bench_path(folder, batches=batches, origin=origin, rounds=rounds, against=rivals)
    if as_json:
        print_json(measured.to_dict(), "bench")
    else:
        _print(measured)


def _sizes(text: str) -> list[int]:
    entries = listed(text, "--batch")
    if not all(entry.isascii() and entry.isdigit() and 0 < len(entry) < 7 for entry in entries):
        raise typer.BadParameter(f"{text!r} is not a list such as 1,8", param_hint="--batch")
    sizes = [int(entry) for entry in entries]
    if 0 in sizes:
        raise typer.BadParameter("a batch needs at least one example", param_hint="--batch")
    return sizes


def _print(bench: Bench) -> None:
    from rich.table import Table

    from slt_compress.cli.screen import Screen

    console = Screen()
    table = Table(title=f"on {bench.machine['threads']} threads, {bench.machine['cpu']}")
    for name in ("runtime", "batch", "ms", "least", "most", "examples/s", "speed", "peak MB"):
        table.add_column(name, justify="left" if name == "runtime" else "right")
    dense = {row.batch: row.latency_ms["median"] for row in reversed(bench.rows)}
    for row in bench.rows:
        latency = row.latency_ms
        times = [f"{latency[key]:.2f}" for key in ("median", "min", "max")]
        speed = f"{dense[row.batch] / latency['median']:.2f}x"
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"
        figures = (f"{row.throughput:.1f}", speed, peak)
        table.add_row(row.runtime, str(row.batch), *times, *figures)
    console.print(table)
    for runtime, counts in bench.to_dict()["layers"].items():
        for what, count in sorted(counts.items(), key=lambda entry: -entry[1]):
            console.print(f"{runtime}: {count} layers on {what}", highlight=False, soft_wrap=True)
    if bench.served:
        console.print(_served(bench))
    for note in bench.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _served(bench: Bench) -> Table:
    """Memory, loading and error, each measured in a process of its own."""
    from rich.table import Table

    table = Table(title="serving, in a process of its own, beyond the imports")
    for name in ("runtime", "load s", "rest MB", "peak MB", "error"):
        table.add_column(name, justify="left" if name == "runtime" else "right")
    for row in bench.served:
        memory = [
            "" if value is None else f"{value / 1e6:.0f}"
            for value in (row.resting_bytes, row.peak_bytes)
        ]
        seconds = "" if row.load_seconds is None else f"{row.load_seconds:.2f}"
        table.add_row(row.runtime, seconds, *memory, f"{row.error:.1e}")
    return table
