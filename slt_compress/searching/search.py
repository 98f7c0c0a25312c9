"""One search, from a module and its batches to exact masks and the evidence for them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slt_compress.anatomy.states import evaluating, kept_buffers
from slt_compress.errors import RecipeError
from slt_compress.evidence.controls import control_masks
from slt_compress.evidence.metrics import Metrics, reestimate_batchnorm
from slt_compress.gates import Learned, Method, Phase
from slt_compress.gates.base import sample_key
from slt_compress.gates.gating import Gates, gated
from slt_compress.masks import Masks
from slt_compress.searching.first_scores import first_scores
from slt_compress.searching.objectives import Objective
from slt_compress.searching.selection import Selection
from slt_compress.searching.settings import Training
from slt_compress.searching.training import EpochBatches, Loop, Step, accelerator_of, train
from slt_compress.sites.budget import Budget, binarize, binarize_signed
from slt_compress.sites.fitting import ceiling
from slt_compress.sites.layouts import norms
from slt_compress.sites.sites import SitePlan

Measure = Callable[..., Metrics]
OnStep = Callable[[Step], None]
# Smallest first: what a mask is selected by on the held-out slice.
_SELECTED_BY = ("loss", "kl")
_PROBE_EXAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a network is searched and measured on.

    Attributes:
        forward: one forward pass on a batch.
        measure: `measure(module, batches, reference=context or None)` gives metrics.
        objective: what the search minimises.
        train, held_out, test: batches; `test` may be the held-out ones where there is no test.
        compare: whether metrics against the dense network (agreement, kl) make sense.
        probe: inputs of a first few examples by argument name; empty where they have no names.
    """

    forward: Callable[[nn.Module, Any], Any]
    measure: Measure
    objective: Objective
    train: EpochBatches
    held_out: Iterable[Any]
    test: Iterable[Any]
    compare: bool
    probe: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Masks and the evidence for them; all tensors on the CPU."""

    plan: SitePlan
    scores: Mapping[str, Tensor]
    masks: Masks
    gains: Mapping[str, float]
    buffers: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    history: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, Metrics | None]
    controls: Mapping[str, Metrics]
    probe: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One search: `run` it. `random_init` decides about gains, the prior and the start density."""

    module: nn.Module
    plan: SitePlan
    workload: Workload
    budget: Budget
    method: Method
    training: Training
    random_init: bool

    def run(self, on_step: OnStep | None = None) -> SearchResult:
        """Search; the module comes back bit-identical, also after an exception."""
        accelerator = accelerator_of(self.training)
        home = next(self.module.parameters()).device
        weights = self._weights()
        learned = self.method if isinstance(self.method, Learned) else None
        try:
            self.module.to(accelerator.device)
            work = self.workload
            scores, notes = first_scores(
                self.module, self.plan, self.method, weights, work.train, work.forward,
                random_init=self.random_init, seed=self.training.seed,
            )  # fmt: skip
            with gated(
                self.module, self.plan, method=learned, scores=scores if learned else None,
                rescale=self._rescales,
            ) as gates:  # fmt: skip
                self.module.to(accelerator.device)
                dense = self._measure(self.workload.test)
                history: list[Mapping[str, Any]] = []
                if learned is not None:
                    loop = self._loop(gates, learned)
                    steps = train(loop, self.training, accelerator)
                    scores = self._learn(steps, gates, history, on_step)
                result = self._result(gates, scores, weights, dense, tuple(history))
                return replace(result, notes=notes)
        finally:
            self.module.to(home)

    def pace(self) -> float:
        """Seconds of a step: the mean of two after a first one; the module comes back as it was.

        Raises:
            RecipeError: the method takes no steps.
        """
        if not isinstance(self.method, Learned):
            raise RecipeError(f"the method {self.method.name} takes no steps")
        training = replace(self.training, steps=3, max_time=None)
        accelerator = accelerator_of(training)
        home, weights = next(self.module.parameters()).device, self._weights()
        # any order will do: that of a prior makes no step longer, and inputs take time to see
        scores = {
            name: self.method.start(norms(layout, weights[name]), None, sample_key(0, name))
            for name, layout in self.plan.layouts.items()
        }
        try:
            self.module.to(accelerator.device)
            with gated(
                self.module, self.plan, method=self.method, scores=scores, rescale=self._rescales
            ) as gates:
                self.module.to(accelerator.device)
                steps = list(train(self._loop(gates, self.method), training, accelerator))
        finally:
            self.module.to(home)
        return (steps[-1].seconds - steps[0].seconds) / 2

    def _weights(self) -> dict[str, Tensor]:
        """The frozen weights of the sites, on the CPU."""
        with evaluating(self.module):  # in train mode a spectral norm changes as it is read
            return {
                site.name: getattr(self.module.get_submodule(site.module), site.param)
                .detach()
                .cpu()
                for site in self.plan.sites
            }

    @property
    def _rescales(self) -> bool:
        """Whether gains make up for what is removed: those of a random init, unless unwanted."""
        return self.random_init and (not isinstance(self.method, Learned) or self.method.rescales)

    def _binarize(self, scores: Mapping[str, Tensor]) -> Masks:
        signed = isinstance(self.method, Learned) and self.method.signed
        return (binarize_signed if signed else binarize)(scores, self.budget, self.plan.layouts)

    def _loop(self, gates: Gates, method: Learned) -> Loop:
        start = self.training.start_density
        if start is None:
            start = 0.5 if self.random_init else 1.0
        return Loop(
            module=self.module,
            plan=self.plan,
            gates=gates,
            method=method,
            budget=self.budget,
            objective=self.workload.objective,
            batches=self.workload.train,
            start_density=max(min(start, ceiling(self.plan, self.budget)), self.budget.density),
        )

    def _learn(
        self,
        steps: Generator[Step],
        gates: Gates,
        history: list[Mapping[str, Any]],
        on_step: OnStep | None,
    ) -> dict[str, Tensor]:
        """Train to the end, or until the selection has seen enough; the selected scores."""
        selection = Selection(self.training, gates.scores, partial(self._held_out_loss, gates))
        with closing(steps):
            for step in steps:
                history.append(_record(step))
                if on_step is not None:
                    on_step(step)
                selection.follow()
                if selection.due(step.progress):
                    history[-1] = {**history[-1], "held_out": selection.measure()}
                if selection.exhausted:
                    break
        if self.training.selections > 0 and "held_out" not in history[-1]:
            history[-1] = {**history[-1], "held_out": selection.measure()}
        return selection.result()

    def _held_out_loss(self, gates: Gates, scores: Mapping[str, Tensor]) -> float:
        masks = self._binarize(scores)
        metrics = self._masked(gates, masks, self._gains(masks), self.workload.held_out, limit=20)
        return next((metrics[key] for key in _SELECTED_BY if key in metrics), 0.0)

    def _result(
        self,
        gates: Gates,
        scores: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        dense: Metrics,
        history: tuple[Mapping[str, Any], ...],
    ) -> SearchResult:
        masks = self._binarize(scores)
        gains = self._gains(masks)
        test = self.workload.test
        others = control_masks(masks, weights, self.training.seed, self.plan.layouts)
        controls = {
            name: self._masked(gates, control, self._gains(control), test)
            for name, control in others.items()
        }
        soft = None
        if isinstance(self.method, Learned):
            soft = self._soft(gates, scores, self.method)
        with kept_buffers(self.module):
            gates.mask(masks, gains)
            buffers = reestimate_batchnorm(self.module, self.workload.train, self.workload.forward)
            hard = self._measure(test, gates)
            probe = self._probe()
        return SearchResult(
            plan=self.plan, scores=scores, masks=masks, gains=gains, buffers=buffers,
            weights=weights, history=history,
            metrics={"dense": dense, "hard": hard, "soft": soft},
            controls=controls, probe=probe,
        )  # fmt: skip

    def _gains(self, masks: Masks) -> dict[str, float]:
        """1 / sqrt(density) of each site, as fp32; none for pretrained weights or dead layers."""
        if not self._rescales:
            return {}
        densities = {name: masks.density_of(name) for name in masks}
        return {n: float(np.float32(1.0 / sqrt(d))) for n, d in densities.items() if d > 0.0}

    def _masked(
        self,
        gates: Gates,
        masks: Masks,
        gains: Mapping[str, float],
        batches: Iterable[Any],
        *,
        limit: int = 50,
    ) -> Metrics:
        """Metrics under a mask, with BatchNorm re-estimated for it and put back afterwards."""
        with kept_buffers(self.module):
            gates.mask(masks, gains)
            reestimate_batchnorm(
                self.module, self.workload.train, self.workload.forward, limit=limit
            )
            return self._measure(batches, gates)

    def _soft(self, gates: Gates, scores: Mapping[str, Tensor], method: Learned) -> Metrics:
        """Metrics of the gates at the end, without noise; rounded ones if they always were."""
        rounded = self.training.rounded == 1.0
        phase = Phase(step=0, seed=self.training.seed, annealed=1.0, hard=rounded, noise=False)
        with torch.no_grad():
            for name, score in gates.scores.items():
                score.copy_(scores[name])
        scores = gates.ranked_()
        start = dict.fromkeys(scores, 0.0)
        shifts = method.shifts(scores, self.budget, self.budget.density, phase, start)
        with kept_buffers(self.module):
            gates.sample(phase, shifts)
            reestimate_batchnorm(self.module, self.workload.train, self.workload.forward)
            return self._measure(self.workload.test, gates)

    def _measure(self, batches: Iterable[Any], gates: Gates | None = None) -> Metrics:
        if not self.workload.compare or gates is None:
            return self.workload.measure(self.module, batches, reference=None)
        return self.workload.measure(self.module, batches, reference=gates.opened)

    def _probe(self) -> dict[str, Tensor]:
        """A few inputs and the masked network's outputs on them, computed on the CPU."""
        if not self.workload.probe:
            return {}
        self.module.cpu()
        inputs = {key: value[:_PROBE_EXAMPLES] for key, value in self.workload.probe.items()}
        self.module.eval()
        with torch.no_grad():
            logits = self.workload.forward(self.module, inputs)
        return {**inputs, "logits": logits.contiguous()}


def _record(step: Step) -> dict[str, Any]:
    """A step for the history, which has no clock in it."""
    return {key: value for key, value in asdict(step).items() if key != "seconds"}
