"""Runtimes: what the layers of an opened model compute with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.states import site_parameters
from slt_compress.errors import DataError, SltError
from slt_compress.runtime.kernel_choice import Candidate, choose, ratios_of, time_interleaved
from slt_compress.runtime.kernels import has_team
from slt_compress.runtime.opening import Opened
from slt_compress.runtime.probes import example_inputs
from slt_compress.runtime.sparse_layers import Choice, SparseForward, kernels_of, why_dense

RUNTIMES = ("dense", "sparse", "auto")
# The batch sizes for which `auto` chooses.
BATCHES = (1, 8)
# A model on inputs of some batch sizes, in their order.
Runs = Mapping[int, Callable[[], Any]]
# A model stays dense if its kernels take more than this share of the dense time. At batch sizes
# where no layer uses a kernel, the two differ by noise only.
_SLOWER = 1.02
# Rounds and seconds for comparing the whole model; above the last, larger batches are not timed.
_ROUNDS, _PATIENCE, _LONG = 15, 0.5, 0.1
_NOT_COMPARED = "auto chose kernels layer by layer and did not compare the model as a whole"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlan:
    """The forwards of layers that compute with kernels; they are put on a module and taken off.

    Attributes:
        forwards: by name of the layer.
        reasons: what each layer with a site computes with, and why where that is dense.
        warning: why the model as a whole was not compared; None where it was, or need not be.
    """

    forwards: Mapping[str, SparseForward]
    reasons: Mapping[str, str]
    warning: str | None = None

    def put_on(self) -> None:
        """Make the layers use their kernels."""
        for forward in self.forwards.values():
            forward.put_on()

    def take_off(self) -> None:
        """Give the layers their own forwards back."""
        for forward in self.forwards.values():
            forward.take_off()

    @property
    def nbytes(self) -> int:
        """Bytes of the kernels, beside the weights."""
        return sum(forward.nbytes for forward in self.forwards.values())


def run_on(opened: Opened, runtime: str, device: str | torch.device = "cpu") -> nn.Module:
    """The model of an opened folder on a runtime and a device.

    `dense` is torch's own kernels on weights with zeros. With `sparse`, every sparse layer that has
    a sparse kernel uses it; with `auto`, every layer whose kernel was measured to be faster, for
    the token counts where it was. Both are for inference: parameters require no gradients. The
    attribute `slt_runtime` of the module says what each layer computes with, by name of the layer;
    under the empty name it says why `auto` could not compare the model as a whole.

    Warns:
        RuntimeWarning: `auto` could not compare the model as a whole.

    Raises:
        SltError: an unknown runtime, or `sparse` on another device than the CPU.
    """
    if runtime not in RUNTIMES:
        raise SltError(f"unknown runtime {runtime!r}; known: {', '.join(RUNTIMES)}")
    module, on_cpu = opened.module, torch.device(device).type == "cpu"
    if runtime == "sparse" and not on_cpu:
        raise SltError(
            f"the sparse runtime is for the CPU and not for {device}: unstructured zeros gain "
            "nothing there; load with runtime='dense'"
        )
    if runtime != "dense" and on_cpu:
        plan = fit_opened(opened, runtime)
        plan.put_on()
        module.requires_grad_(False)
        vars(module)["slt_runtime"] = dict(plan.reasons)
        if plan.warning is not None:
            vars(module)["slt_runtime"][""] = plan.warning
            warnings.warn(plan.warning, RuntimeWarning, stacklevel=3)
    return module.to(device)


def fit_opened(opened: Opened, runtime: str) -> KernelPlan:
    """As `fit`, for the model of an opened folder on its example inputs.

    Raises:
        TicketError, ArtifactError: the stored probe is damaged.
    """
    if runtime != "auto":
        return fit(opened.module, opened.shapes_now, runtime, {})
    runs, warning = _runs(opened)
    return replace(fit(opened.module, opened.shapes_now, runtime, runs), warning=warning)


def fit(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]], runtime: str, runs: Runs
) -> KernelPlan:
    """Find kernels for the layers of a model, and with `auto` measure which of them are used.

    Args:
        module: the masked model; it is not changed.
        shapes: of its sites, by name.
        runtime: one of `RUNTIMES`.
        runs: for `auto`, the model on some inputs by batch size. They show what its layers get,
            and whether the model as a whole is faster. Without them each layer is measured alone.
    """
    if runtime == "dense":
        return KernelPlan(forwards={}, reasons={})
    layers = _layers(module, shapes)
    obstacles = {name: why_dense(layer) for name, layer in layers.items()}
    candidates = {
        name: Candidate(layer=layer, kernels=kernels_of(layer, every=runtime == "auto"), seen=())
        for name, layer in layers.items()
        if obstacles[name] is None
    }
    plan = _all(candidates) if runtime == "sparse" else _fastest(candidates, runs)
    dense = {name: f"dense: {why}" for name, why in obstacles.items() if why is not None}
    return replace(plan, reasons=dict(sorted({**plan.reasons, **dense}.items())))


def _layers(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, nn.Module]:
    """The modules that have a site of their own, by name."""
    sites = {id(weight) for weight in site_parameters(module, shapes).values()}
    return {
        name: layer
        for name, layer in module.named_modules()
        if any(id(parameter) in sites for parameter in layer._parameters.values())
    }


def _all(candidates: Mapping[str, Candidate]) -> KernelPlan:
    """Every layer with its first kernel."""
    choices = {name: Choice({1: next(iter(c.kernels))}) for name, c in candidates.items()}
    return _planned(candidates, choices)


def _planned(candidates: Mapping[str, Candidate], choices: Mapping[str, Choice]) -> KernelPlan:
    return KernelPlan(
        forwards={
            name: SparseForward(candidate.layer, candidate.kernels, choices[name])
            for name, candidate in candidates.items()
            if choices[name].used
        },
        reasons={name: _reason(choice) for name, choice in choices.items()},
    )


def _reason(choice: Choice) -> str:
    if not choice.points:
        return "dense: the shape of its inputs is not known"
    if not choice.used:
        return "dense: no kernel was faster"
    least = f", from {choice.least} tokens on" if choice.least > 1 else ""
    alone = "compiled" in choice.used and not has_team()
    threads = ", on one thread: torch's OpenMP library is not GNU's" if alone else ""
    return f"{' and '.join(choice.used)}{least}{threads}"


def _fastest(candidates: Mapping[str, Candidate], runs: Runs) -> KernelPlan:
    """Every layer with what is fastest for it, if that makes the whole model faster."""
    if runs:
        seen = _seen(candidates, runs)
        candidates = {name: replace(c, seen=seen[name]) for name, c in candidates.items()}
    plan = _planned(candidates, choose(candidates))
    if plan.forwards and _is_slower(plan, runs):
        reason = "dense: the model as a whole was slower with kernels"
        return KernelPlan(forwards={}, reasons=dict.fromkeys(candidates, reason))
    return plan


def _runs(opened: Opened) -> tuple[Runs, str | None]:
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


def _seen(
    candidates: Mapping[str, Candidate], runs: Runs
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The shapes of the inputs of each layer in the shortest run, scaled to the longer ones."""
    least = min(runs)
    shapes: dict[str, dict[tuple[int, ...], None]] = {name: {} for name in candidates}

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim():
            first, *rest = inputs[0].shape
            shapes[name].update(dict.fromkeys((first * batch // least, *rest) for batch in runs))

    handles = [
        candidate.layer.register_forward_pre_hook(partial(note, name))
        for name, candidate in candidates.items()
    ]
    try:
        with torch.no_grad():
            runs[least]()
    finally:
        for handle in handles:
            handle.remove()
    return {name: tuple(of_layer) for name, of_layer in shapes.items()}


def _is_slower(plan: KernelPlan, runs: Runs) -> bool:
    """Whether the whole model takes longer with the kernels, for any batch size."""
    for run in runs.values():
        turns = {"dense": (plan.take_off, run), "kernels": (plan.put_on, run)}
        try:
            with torch.no_grad():
                seconds = time_interleaved(turns, _ROUNDS, _PATIENCE)
        finally:
            plan.take_off()
        if median(ratios_of(seconds, "kernels", "dense")) > _SLOWER:
            return True
        if median(seconds["dense"]) > _LONG:
            return False
    return False
