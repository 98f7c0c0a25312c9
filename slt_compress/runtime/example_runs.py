"""A model on example inputs: what its layers get there, and whether kernels make it faster."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slt_compress.errors import DataError
from slt_compress.runtime.kernel_choice import ratios_of, time_interleaved
from slt_compress.runtime.opening import Opened
from slt_compress.runtime.probes import example_inputs

# The batch sizes for which `auto` chooses.
BATCHES = (1, 8)
# A model on inputs of some batch sizes, in their order.
Runs = Mapping[int, Callable[[], Any]]
# A model stays dense if its kernels take more than this share of the dense time.
SLOWER = 0.98
# Rounds and seconds for comparing the whole model; above the last, larger batches are not timed.
_ROUNDS, _PATIENCE, _LONG = 15, 0.5, 0.1
# So many times a model runs, at least, when it is compared.
LEAST_RUNS = 6
_NOT_COMPARED = "auto chose kernels layer by layer and did not compare the model as a whole"


class Switch(Protocol):
    """Something that is put on a model and taken off."""

    def put_on(self) -> None:
        """Put it on."""

    def take_off(self) -> None:
        """Take it off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one run of a model showed.

    Attributes:
        shapes: of the inputs of each layer, scaled to all batch sizes.
        seconds: of the shortest run.
    """

    shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    seconds: float


def runs_of(opened: Opened) -> tuple[Runs, str | None]:
    """The model on example inputs by batch size; or none, and a sentence that says why.

    Raises:
        TicketError, ArtifactError: the stored probe is damaged.
    """
    runs: dict[int, Callable[[], Any]] = {}
    try:
        for batch in BATCHES:
            inputs = example_inputs(opened, batch)
            runs[batch] = partial(opened.checkpoint.forward, opened.module, inputs)
    except DataError as error:
        return {}, f"{_NOT_COMPARED}: {error}"
    try:
        with torch.no_grad():
            runs[BATCHES[0]]()
    except Exception as error:  # a model raises whatever it likes
        text = " ".join(str(error).split())[:200]
        return {}, f"{_NOT_COMPARED}: it does not run on its probe ({type(error).__name__}: {text})"
    return runs, None


def look(layers: Mapping[str, nn.Module], runs: Runs) -> Seen:
    """Run a model once, on its shortest inputs."""
    least = min(runs)
    shapes: dict[str, dict[tuple[int, ...], None]] = {name: {} for name in layers}

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim():
            first, *rest = inputs[0].shape
            shapes[name].update(dict.fromkeys((first * batch // least, *rest) for batch in runs))

    handles = [
        layer.register_forward_pre_hook(partial(note, name)) for name, layer in layers.items()
    ]
    started = time.perf_counter()
    try:
        with torch.no_grad():
            runs[least]()
    finally:
        for handle in handles:
            handle.remove()
    taken = time.perf_counter() - started
    return Seen(shapes={name: tuple(of) for name, of in shapes.items()}, seconds=taken)


def error_of(switch: Switch, runs: Runs) -> float:
    """Largest difference that a switch makes to the outputs, over the largest of them."""
    run = runs[min(runs)]
    with torch.no_grad():
        before = run().double()
        switch.put_on()
        try:
            difference = float((run().double() - before).abs().max())
        finally:
            switch.take_off()
    return difference / max(1e-30, float(before.abs().max()))


def is_slower(switch: Switch, runs: Runs, seconds: float) -> bool:
    """Whether the whole model gains nothing by the switch, for any batch size.

    Args:
        switch: what is compared with its absence.
        runs: the model by batch size.
        seconds: what the comparison may take; it is of one round each where that is too little.
    """
    for run in runs.values():
        turns = {"off": (switch.take_off, run), "on": (switch.put_on, run)}
        started = time.perf_counter()
        try:
            with torch.no_grad():
                taken = time_interleaved(turns, _ROUNDS, min(_PATIENCE, seconds), least=1)
        finally:
            switch.take_off()
        if median(ratios_of(taken, "on", "off")) > SLOWER:
            return True
        seconds -= time.perf_counter() - started
        if median(taken["off"]) > _LONG or seconds < 0:
            return False
    return False
