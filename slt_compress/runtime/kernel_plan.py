"""Plans: what each layer of a model computes with, by measurement or for all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from slt_compress.anatomy.states import site_parameters
from slt_compress.runtime.example_runs import LEAST_RUNS, Runs, is_slower, look
from slt_compress.runtime.kernel_choice import Candidate, choose
from slt_compress.runtime.kernels import has_team
from slt_compress.runtime.packed import Once
from slt_compress.runtime.remembered import Measured
from slt_compress.runtime.sparse_layers import Choice, SparseForward, kernels_of, why_dense
from slt_compress.storage.freeing import release

RUNTIMES = ("dense", "sparse", "auto")
# What kept weights are multiplied in. Sums are float32 always, of exact integers in `int8`.
PRECISIONS = ("fp32", "bf16", "int8")
# Seconds that `auto` may measure for at the first load of a model.
SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPlan:
    """The forwards of layers that compute with kernels; they are put on a module and taken off.

    Attributes:
        forwards: by name of the layer.
        reasons: what each layer with a site computes with, and why where that is dense.
        warning: why the model as a whole was not compared; None where it was, or need not be.
        choices: what was measured for each layer that has kernels.
        faster: whether the model as a whole is faster with them.
        error: largest difference that a lower precision made to the logits on example inputs, over
            the largest of them; None for float32, or where it could not be measured.
    """

    forwards: Mapping[str, SparseForward]
    reasons: Mapping[str, str]
    warning: str | None = None
    choices: Mapping[str, Choice] = field(default_factory=dict)
    faster: bool = True
    error: float | None = None

    def put_on(self) -> None:
        """Make the layers use their kernels."""
        for forward in self.forwards.values():
            forward.put_on()

    def take_off(self) -> None:
        """Give the layers their own forwards back."""
        for forward in self.forwards.values():
            forward.take_off()

    def pack(self) -> None:
        """Let go of the dense weights that no layer computes with any more."""
        once = Once()
        for forward in self.forwards.values():
            forward.pack(once)
        release()

    @property
    def nbytes(self) -> int:
        """Bytes of the kernels, beside the weights."""
        return sum(forward.nbytes for forward in self.forwards.values())


def fit(
    module: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    runtime: str,
    runs: Runs,
    *,
    seconds: float = SECONDS,
    precision: str = PRECISIONS[0],
) -> KernelPlan:
    """Find kernels for the layers of a model, and with `auto` measure which of them are used.

    Args:
        module: the masked model; it is not changed.
        shapes: of its sites, by name.
        runtime: one of `RUNTIMES`.
        runs: for `auto`, the model on some inputs by batch size. They show what its layers get,
            and whether the model as a whole is faster. Without them each layer is measured alone.
        seconds: what measuring may take, about.
        precision: one of `PRECISIONS`, for the layers that have it.
    """
    if runtime == "dense":
        return KernelPlan(forwards={}, reasons={})
    layers, obstacles = _layers_and_obstacles(module, shapes)
    candidates = {
        name: _candidate(layer, precision)
        for name, layer in layers.items()
        if obstacles[name] is None
    }
    plan = _all(candidates) if runtime == "sparse" else _fastest(candidates, runs, seconds)
    return _with_obstacles(plan, obstacles)


def recalled(
    before: Measured, module: nn.Module, shapes: Mapping[str, tuple[int, ...]], precision: str
) -> KernelPlan | None:
    """The plan that was measured before; None where it does not fit this model and machine."""
    layers, obstacles = _layers_and_obstacles(module, shapes)
    free = {name: layer for name, layer in layers.items() if obstacles[name] is None}
    if before.layers.keys() != free.keys():
        return None
    choices = {name: Choice(points) for name, points in before.layers.items()}
    used = {name for name, choice in choices.items() if choice.used and before.faster}
    candidates = {
        name: _candidate(layer, precision if name in used else None) for name, layer in free.items()
    }
    if any(not set(choices[name].used) <= candidates[name].kernels.keys() for name in used):
        return None
    plan = _planned(candidates, choices) if before.faster else _all_dense(choices)
    return replace(_with_obstacles(plan, obstacles), warning=before.warning, error=before.error)


def _candidate(layer: nn.Module, precision: str | None) -> Candidate:
    kernels = {} if precision is None else kernels_of(layer, precision)
    return Candidate(layer=layer, kernels=kernels, seen=())


def _layers_and_obstacles(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, nn.Module], dict[str, str | None]]:
    layers = _layers(module, shapes)
    return layers, {name: why_dense(layer) for name, layer in layers.items()}


def _with_obstacles(plan: KernelPlan, obstacles: Mapping[str, str | None]) -> KernelPlan:
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
        choices=choices,
    )


def _all_dense(choices: Mapping[str, Choice]) -> KernelPlan:
    reason = "dense: the model as a whole was not faster with kernels"
    reasons = dict.fromkeys(choices, reason)
    return KernelPlan(forwards={}, reasons=reasons, choices=choices, faster=False)


def _reason(choice: Choice) -> str:
    if not choice.points:
        return "dense: the shape of its inputs is not known"
    if not choice.used:
        return "dense: no kernel was faster"
    least = f", from {choice.least} tokens on" if choice.least > 1 else ""
    alone = "csr" not in choice.used and not has_team()
    threads = ", on one thread: torch's OpenMP library is not GNU's" if alone else ""
    return f"{' and '.join(choice.used)}{least}{threads}"


def _fastest(candidates: Mapping[str, Candidate], runs: Runs, seconds: float) -> KernelPlan:
    """Every layer with what is fastest for it, if that makes the whole model faster."""
    left = seconds
    if runs:
        seen = look({name: candidate.layer for name, candidate in candidates.items()}, runs)
        candidates = {name: replace(c, seen=seen.shapes[name]) for name, c in candidates.items()}
        # Comparing the model as a whole comes last, and must not be left out.
        left = max(seconds / 4, seconds - LEAST_RUNS * seen.seconds)
    started = time.perf_counter()
    plan = _planned(candidates, choose(candidates, left))
    left = seconds - (time.perf_counter() - started)
    if plan.forwards and is_slower(plan, runs, left):
        return _all_dense(plan.choices)
    return plan
