"""Bench: time and memory of the dense origin and of every runtime, side by side on this CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.recorded import local_folder
from slt_compress.errors import SltError
from slt_compress.runtime.kernel_choice import time_interleaved
from slt_compress.runtime.kernel_plan import RUNTIMES, KernelPlan
from slt_compress.runtime.opening import Opened, open_path, origin_of
from slt_compress.runtime.probes import example_inputs
from slt_compress.runtime.sparse import fit_opened

ORIGIN = "origin"
# Seconds for one batch size, after which no further round begins.
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One runtime at one batch size.

    Attributes:
        runtime: `origin`, or a runtime of the masked model.
        batch: examples in a batch.
        latency_ms: `median`, `min` and `max` of the rounds, in milliseconds for a batch.
        throughput: examples in a second, at the median.
        peak_bytes: of the weights, buffers and kernels, and the most that a forward adds to them.
    """

    runtime: str
    batch: int
    latency_ms: Mapping[str, float]
    throughput: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What was measured.

    Attributes:
        rows: by batch size, then by runtime.
        layers: for the runtimes with kernels, what each layer computes with.
        notes: what could not be measured, and why.
        machine: threads, instruction set and versions.
    """

    rows: tuple[Row, ...]
    layers: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]
    machine: Mapping[str, object]

    def to_dict(self) -> dict[str, Any]:
        """Everything; the reasons of the layers are counted."""
        counts = {name: dict(Counter(reasons.values())) for name, reasons in self.layers.items()}
        return {
            "rows": [asdict(row) for row in self.rows],
            "layers": counts,
            "notes": list(self.notes),
            "machine": dict(self.machine),
        }


def bench_path(
    path: str | Path,
    *,
    batches: Sequence[int] = (1, 8),
    origin: str | Path | None = None,
    rounds: int = 15,
) -> Bench:
    """Time the model of a ticket or artifact and its origin, interleaved, on the same inputs.

    Args:
        path: a folder, or the id of a hub repository.
        batches: sizes of batches, each at least 1.
        origin: where the origin's weights are read from instead of the recorded place.
        rounds: at most this many; the median is taken over them.

    Raises:
        SltError: the folder cannot be used, or no inputs can be made for it.
    """
    if not batches or min(batches) < 1 or rounds < 1:
        raise SltError(f"batches {list(batches)} and rounds {rounds} must be at least 1")
    opened = open_path(local_folder(path), origin=origin, keep_origin=True)
    sides, notes = _sides(opened, origin)
    rows = [
        row
        for batch in batches
        for row in _rows(sides, example_inputs(opened, batch), batch, rounds)
    ]
    layers = {side.runtime: side.plan.reasons for side in sides if side.plan.reasons}
    notes += tuple(side.plan.warning for side in sides if side.plan.warning is not None)
    return Bench(rows=tuple(rows), layers=layers, notes=notes, machine=machine())


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A module on a runtime; several of them may share one module."""

    runtime: str
    module: nn.Module
    plan: KernelPlan
    forward: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def _sides(opened: Opened, origin: str | Path | None) -> tuple[list[Side], tuple[str, ...]]:
    """The origin, where it can be opened, and the runtimes."""
    plain = fit_opened(opened, "dense")
    sides = [
        _side(runtime, opened.checkpoint, fit_opened(opened, runtime, refresh=True))
        for runtime in RUNTIMES
    ]
    try:
        source = origin_of(opened, origin=origin)
    except SltError as error:
        note = f"the origin was not measured; `dense` takes the same time: {error}"
        return sides, (note,)
    return [_side(ORIGIN, source, plain), *sides], ()


def _side(runtime: str, checkpoint: Checkpoint, plan: KernelPlan) -> Side:
    forward = checkpoint.forward
    return Side(runtime=runtime, module=checkpoint.module.eval(), plan=plan, forward=forward)


def _rows(
    sides: Sequence[Side], inputs: Mapping[str, Tensor], batch: int, rounds: int
) -> list[Row]:
    """The rows of one batch size."""

    def turn_to(side: Side) -> None:
        for other in sides:
            other.plan.take_off()
        side.plan.put_on()

    runs = {
        side.runtime: (partial(turn_to, side), partial(side.forward, side.module, inputs))
        for side in sides
    }
    try:
        with torch.inference_mode():
            seconds = time_interleaved(runs, rounds, _PATIENCE)
            peaks = {side.runtime: _peak(side, *runs[side.runtime]) for side in sides}
    finally:
        for side in sides:
            side.plan.take_off()
    return [_row(name, batch, seconds[name], peaks[name]) for name in runs]


def _row(runtime: str, batch: int, seconds: Sequence[float], peak: int) -> Row:
    middle = median(seconds)
    latency = {"median": middle, "min": min(seconds), "max": max(seconds)}
    return Row(
        runtime=runtime,
        batch=batch,
        latency_ms={name: round(1000 * value, 4) for name, value in latency.items()},
        throughput=round(batch / middle, 2),
        peak_bytes=peak,
    )


def _peak(side: Side, prepare: Callable[[], Any], run: Callable[[], Any]) -> int:
    """Bytes of a module on a runtime, plus the most that torch allocates during a run."""
    prepare()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    used = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        most = max(most, used)
    tensors = [*side.module.parameters(), *side.module.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) + side.plan.nbytes + most


def machine() -> dict[str, Any]:
    """What the figures depend on beside the model."""
    return {
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "llvmlite": _version("llvmlite"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
