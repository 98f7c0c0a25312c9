"""Bench: time and memory of the dense origin and of every runtime, side by side on this CPU."""

from __future__ import annotations

import tempfile
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
from slt_compress.runtime.kernel_plan import PRECISIONS, RUNTIMES, KernelPlan
from slt_compress.runtime.kernels import can_compile
from slt_compress.runtime.opening import Opened, open_path, origin_of
from slt_compress.runtime.probes import example_inputs
from slt_compress.runtime.resting import resting
from slt_compress.runtime.rivals import RIVALS, check_rivals, open_rival, write_model
from slt_compress.runtime.sparse import fit_opened
from slt_compress.storage.files import write_safetensors

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
        peak_bytes: of the weights, buffers and kernels, and the most that a forward adds to them;
            None for another runtime than torch.
    """

    runtime: str
    batch: int
    latency_ms: Mapping[str, float]
    throughput: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a runtime takes to serve a model, measured in a process of its own.

    Attributes:
        runtime: as in `Row`.
        error: largest difference of its outputs to those of dense torch, over the largest of them.
        load_seconds: of opening it, with what it remembers of earlier times.
        resting_bytes, peak_bytes: what the process holds after an answer, and held at most, beyond
            its imports; None where the system does not tell.
    """

    runtime: str
    error: float
    load_seconds: float | None
    resting_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What was measured.

    Attributes:
        rows: by batch size, then by runtime.
        layers: for the runtimes with kernels, what each layer computes with.
        notes: what could not be measured, and why.
        machine: threads, instruction set and versions.
        served: memory, loading and error beside rivals; empty where there are none.
    """

    rows: tuple[Row, ...]
    layers: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]
    machine: Mapping[str, object]
    served: tuple[Served, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything; the reasons of the layers are counted."""
        counts = {name: dict(Counter(reasons.values())) for name, reasons in self.layers.items()}
        return {
            "rows": [asdict(row) for row in self.rows],
            "layers": counts,
            "notes": list(self.notes),
            "machine": dict(self.machine),
            **({"served": [asdict(one) for one in self.served]} if self.served else {}),
        }


def bench_path(
    path: str | Path,
    *,
    batches: Sequence[int] = (1, 8),
    origin: str | Path | None = None,
    rounds: int = 15,
    against: Sequence[str] = (),
) -> Bench:
    """Time the model of a ticket or artifact and its origin, interleaved, on the same inputs.

    Args:
        path: a folder, or the id of a hub repository.
        batches: sizes of batches, each at least 1.
        origin: where the origin's weights are read from instead of the recorded place.
        rounds: at most this many; the median is taken over them.
        against: names in `RIVALS`, to be measured beside; then `auto` is measured in every
            precision, and memory, loading and errors too.

    Raises:
        SltError: the folder cannot be used, or no inputs can be made for it.
    """
    if not batches or min(batches) < 1 or rounds < 1:
        raise SltError(f"batches {list(batches)} and rounds {rounds} must be at least 1")
    check_rivals(tuple(against))
    folder = local_folder(path)
    opened = open_path(folder, origin=origin, keep_origin=True)
    sides, notes = _sides(opened, origin)
    with tempfile.TemporaryDirectory() as scratch:
        if against:
            sides += _against(opened, tuple(against), Path(scratch))
        rows = [
            row
            for batch in batches
            for row in _rows(sides, example_inputs(opened, batch), batch, rounds)
        ]
        served = _served(opened, sides, Path(scratch), origin) if against else ()
    layers = {side.runtime: side.plan.reasons for side in sides if side.plan.reasons}
    notes += tuple(side.plan.warning for side in sides if side.plan.warning is not None)
    return Bench(rows=tuple(rows), layers=layers, notes=notes, machine=machine(), served=served)


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A module on a runtime; several of them may share one module."""

    runtime: str
    module: nn.Module
    plan: KernelPlan
    forward: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    rival: bool = False


def _against(opened: Opened, names: tuple[str, ...], scratch: Path) -> list[Side]:
    """`auto` in the lower precisions, and the rows of the rivals."""
    sides = []
    for precision in PRECISIONS[1:] if can_compile() else ():
        plan = fit_opened(opened, "auto", precision=precision, refresh=True)
        sides.append(_side(f"auto {precision}", opened.checkpoint, plan))
    write_model(opened.checkpoint, example_inputs(opened, 2), scratch)
    none = KernelPlan(forwards={}, reasons={})
    for row in (row for name in names for row in RIVALS[name]):
        run, _ = open_rival(row, scratch)
        forward = partial(_as_forward, run)
        sides.append(Side(runtime=row, module=nn.Module(), plan=none, forward=forward, rival=True))
    return sides


def _as_forward(
    run: Callable[[Mapping[str, Tensor]], Tensor], _: nn.Module, inputs: Mapping[str, Tensor]
) -> Tensor:
    return run(inputs)


def _served(
    opened: Opened, sides: Sequence[Side], scratch: Path, origin: str | Path | None
) -> tuple[Served, ...]:
    """Memory, loading and error of every side but the origin."""
    inputs = example_inputs(opened, 1)
    write_safetensors(scratch / "inputs.safetensors", inputs)
    with torch.inference_mode():
        wanted = opened.checkpoint.forward(opened.module, inputs).double()
    served = []
    for side in sides:
        if side.runtime == ORIGIN:
            continue
        side.plan.put_on()
        with torch.inference_mode():
            found = side.forward(side.module, inputs).double()
        side.plan.take_off()
        facts = resting(
            side.runtime, scratch if side.rival else opened.path, scratch / "inputs.safetensors",
            threads=torch.get_num_threads(), origin=None if origin is None else str(origin),
        ) or dict.fromkeys(("load_seconds", "resting_bytes", "peak_bytes"))  # fmt: skip
        error = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        served.append(Served(runtime=side.runtime, error=error, **facts))
    return tuple(served)


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
            peaks = {
                side.runtime: None if side.rival else _peak(side, *runs[side.runtime])
                for side in sides
            }
    finally:
        for side in sides:
            side.plan.take_off()
    return [_row(name, batch, seconds[name], peaks[name]) for name in runs]


def _row(runtime: str, batch: int, seconds: Sequence[float], peak: int | None) -> Row:
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
    # torch 2.11 warns at every first profile that does not keep events across cycles
    watched = [ProfilerActivity.CPU]
    with profile(activities=watched, profile_memory=True, acc_events=True) as profiler:
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
        **{name: _version(name) for name in RIVALS if _version(name) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
