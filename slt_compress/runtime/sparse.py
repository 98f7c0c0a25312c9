"""Runtimes: what the layers of an opened model compute with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.states import site_parameters
from slt_compress.errors import SltError
from slt_compress.runtime.kernel_choice import Candidate, choose, in_turns, ratios_of
from slt_compress.runtime.opening import Opened
from slt_compress.runtime.probes import example_inputs
from slt_compress.runtime.sparse_layers import Choice, SparseForward, kernels_of, unsuited

RUNTIMES = ("dense", "sparse", "auto")
# The batch sizes for which `auto` chooses.
BATCHES = (1, 8)
# A model on inputs of some batch sizes, in their order.
Runs = Mapping[int, Callable[[], Any]]
# A model is left dense where it takes more than this share of the dense time with its kernels; at
# batch sizes where no layer uses one, the two are the same but for the noise.
_SLOWER = 1.02
# Rounds, and seconds, in which the whole model is compared; not with more examples above the last.
_ROUNDS, _PATIENCE, _LONG = 15, 0.5, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitting:
    """The forwards of layers that compute with kernels; they are put on a module and taken off.

    Attributes:
        forwards: by name of the layer.
        said: what each layer with a site computes with, and why where that is dense.
    """

    forwards: Mapping[str, SparseForward]
    said: Mapping[str, str]

    def put_on(self) -> None:
        """Let the layers use their kernels."""
        for forward in self.forwards.values():
            forward.put_on()

    def take_off(self) -> None:
        """Let the layers be what they were."""
        for forward in self.forwards.values():
            forward.take_off()

    @property
    def nbytes(self) -> int:
        """Bytes of the kernels, beside the weights."""
        return sum(forward.nbytes for forward in self.forwards.values())


def as_runtime(opened: Opened, runtime: str, device: str | torch.device = "cpu") -> nn.Module:
    """The model of an opened folder on a runtime and a device.

    `dense` is torch's own kernels on weights with zeros. With `sparse` every layer that has a
    sparse kernel and is sparse uses it; with `auto` those where it was measured to be faster, for
    the counts of tokens where it was. Both are for inference: parameters want no gradients. What
    each layer computes with is in the attribute `slt_runtime` of the module, by name of the layer.

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
        fitting = fit_opened(opened, runtime)
        fitting.put_on()
        module.requires_grad_(False)
        vars(module)["slt_runtime"] = dict(fitting.said)
    return module.to(device)


def fit_opened(opened: Opened, runtime: str) -> Fitting:
    """As `fit`, for the model of an opened folder on its example inputs."""
    runs = _runs(opened) if runtime == "auto" else {}
    return fit(opened.module, opened.shapes, runtime, runs)


def fit(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]], runtime: str, runs: Runs
) -> Fitting:
    """Find kernels for the layers of a model, and with `auto` measure which of them are used.

    Args:
        module: the masked model; it is not changed.
        shapes: of its sites, by name.
        runtime: one of `RUNTIMES`.
        runs: for `auto`, the model on some inputs by batch size: what its layers see, and whether
            it is faster as a whole. Without them layers are measured on their own.
    """
    if runtime == "dense":
        return Fitting(forwards={}, said={})
    layers = _layers(module, shapes)
    reasons = {name: unsuited(layer) for name, layer in layers.items()}
    candidates = {
        name: Candidate(layer=layer, kernels=kernels_of(layer, every=runtime == "auto"), seen=())
        for name, layer in layers.items()
        if reasons[name] is None
    }
    found = _all(candidates) if runtime == "sparse" else _fastest(candidates, runs)
    dense = {name: f"dense: {reason}" for name, reason in reasons.items() if reason is not None}
    return Fitting(forwards=found.forwards, said=dict(sorted({**found.said, **dense}.items())))


def _layers(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, nn.Module]:
    """The modules that have a site of their own, by name."""
    sites = {id(weight) for weight in site_parameters(module, shapes).values()}
    return {
        name: layer
        for name, layer in module.named_modules()
        if any(id(parameter) in sites for parameter in layer._parameters.values())
    }


def _all(candidates: Mapping[str, Candidate]) -> Fitting:
    """Every layer with its first kernel."""
    choices = {name: Choice({1: next(iter(c.kernels))}) for name, c in candidates.items()}
    return _fitting(candidates, choices)


def _fitting(candidates: Mapping[str, Candidate], choices: Mapping[str, Choice]) -> Fitting:
    return Fitting(
        forwards={
            name: SparseForward(candidate.layer, candidate.kernels, choices[name])
            for name, candidate in candidates.items()
            if choices[name].used
        },
        said={name: _said(choice) for name, choice in choices.items()},
    )


def _said(choice: Choice) -> str:
    if not choice.points:
        return "dense: the shape of its inputs is not known"
    if not choice.used:
        return "dense: no kernel was faster"
    least = f", from {choice.least} tokens on" if choice.least > 1 else ""
    return f"{' and '.join(choice.used)}{least}"


def _fastest(candidates: Mapping[str, Candidate], runs: Runs) -> Fitting:
    """Every layer with what is fastest for it, if that makes the whole model faster."""
    if runs:
        seen = _seen(candidates, runs)
        candidates = {name: replace(c, seen=seen[name]) for name, c in candidates.items()}
    fitting = _fitting(candidates, choose(candidates))
    if fitting.forwards and _is_slower(fitting, runs):
        reason = "dense: the model as a whole was slower with kernels"
        return Fitting(forwards={}, said=dict.fromkeys(candidates, reason))
    return fitting


def _runs(opened: Opened) -> Runs:
    """The model on example inputs, by batch size; none where none can be made."""
    forward = opened.checkpoint.forward
    found: dict[int, Callable[[], Any]] = {}
    try:
        for batch in BATCHES:
            inputs = example_inputs(opened.path, opened.checkpoint, batch)
            found[batch] = partial(forward, opened.module, inputs)
        with torch.no_grad():
            found[BATCHES[0]]()
    except Exception:  # of the folder, or the model's own: it is only not compared as a whole
        return {}
    return found


def _seen(
    candidates: Mapping[str, Candidate], runs: Runs
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The shapes of the inputs of each layer in the shortest run, and in longer ones."""
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
    return {name: tuple(found) for name, found in shapes.items()}


def _is_slower(fitting: Fitting, runs: Runs) -> bool:
    """Whether the whole model takes longer with the kernels, for any batch size."""
    for run in runs.values():
        turns = {"dense": (fitting.take_off, run), "kernels": (fitting.put_on, run)}
        try:
            with torch.no_grad():
                taken = in_turns(turns, _ROUNDS, _PATIENCE)
        finally:
            fitting.take_off()
        if median(ratios_of(taken, "kernels", "dense")) > _SLOWER:
            return True
        if median(taken["dense"]) > _LONG:
            return False
    return False
