"""What a search is given: module, sites, workload, budget, method and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from torch import Tensor, nn

from slt_compress.anatomy.states import evaluating
from slt_compress.evidence.metrics import Metrics
from slt_compress.gates import Learned, Method
from slt_compress.gates.gating import Gates
from slt_compress.masks import Masks
from slt_compress.searching.events import OnEvent, unheard
from slt_compress.searching.objectives import Objective
from slt_compress.searching.settings import ControlsMode, Training
from slt_compress.searching.state import EpochBatches
from slt_compress.searching.training import Loop
from slt_compress.searching.tuning import NO_TUNING, Tuning
from slt_compress.sites.budget import Budget, binarize, binarize_signed
from slt_compress.sites.fitting import largest_density
from slt_compress.sites.sites import SitePlan
from slt_compress.storage.freeing import released
from slt_compress.storage.lazy import LazyMapping

Measure = Callable[..., Metrics]


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
class SearchSetup:
    """Everything one search is made of.

    `random_init` decides about gains, the prior and the start density; `controls` whether the
    controls are measured, on as many test examples as are enough (`fast`) or on all (`full`).
    `tell` hears how far the search is. The probe is computed on `probe_threads` threads, those of
    the caller; None takes as many as the search has.
    `streamed` are the matrices of a hollow module by state-dict name.
    """

    module: nn.Module
    plan: SitePlan
    workload: Workload
    budget: Budget
    method: Method
    training: Training
    random_init: bool
    controls: ControlsMode = "fast"
    tell: OnEvent = unheard
    probe_threads: int | None = None
    streamed: Mapping[str, Tensor] | None = None
    tuning: Tuning = NO_TUNING

    def to_cpu_(self) -> None:
        """Move the module to the CPU."""
        self.module.cpu()

    @property
    def learned(self) -> Learned | None:
        """The method, if its scores are trained."""
        return self.method if isinstance(self.method, Learned) else None

    @property
    def rescales(self) -> bool:
        """Whether gains make up for what is removed: those of a random init, unless unwanted."""
        return self.random_init and (self.learned is None or self.learned.rescales)

    def weights(self) -> Mapping[str, Tensor]:
        """The frozen weights of the sites, on the CPU; those of a hollow module at each look-up."""
        if self.streamed is not None:
            values = self.streamed
            return LazyMapping(self.plan.layouts, released(lambda name: values[name]))
        with evaluating(self.module):  # in train mode a spectral norm changes as it is read
            return {
                site.name: getattr(self.module.get_submodule(site.module), site.param)
                .detach()
                .cpu()
                for site in self.plan.sites
            }

    def binarize(self, scores: Mapping[str, Tensor]) -> Masks:
        """The mask of the highest scores, of the exact count."""
        signed = self.learned is not None and self.learned.signed
        return (binarize_signed if signed else binarize)(scores, self.budget, self.plan.layouts)

    def gains(self, masks: Masks) -> dict[str, float]:
        """1 / sqrt(density) of each site, as fp32; none for pretrained weights or dead layers."""
        if not self.rescales:
            return {}
        densities = {name: masks.density_of(name) for name in masks}
        return {n: float(np.float32(1.0 / sqrt(d))) for n, d in densities.items() if d > 0.0}

    def loop(self, gates: Gates, method: Learned) -> Loop:
        """What stays the same from step to step."""
        start = self.training.start_density
        if start is None:
            start = 0.5 if self.random_init else 1.0
        most = largest_density(self.plan, self.budget)
        return Loop(
            module=self.module,
            plan=self.plan,
            gates=gates,
            method=method,
            budget=self.budget,
            objective=self.workload.objective,
            batches=self.workload.train,
            start_density=max(min(start, most), self.budget.density),
            training=self.training,
            tuning=self.tuning,
        )
