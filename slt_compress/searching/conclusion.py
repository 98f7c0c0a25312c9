"""The conclusion of a search: exact masks of its scores, and the evidence for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from slt_compress.anatomy.states import kept_buffers
from slt_compress.errors import SltError
from slt_compress.evidence.controls import CONTROLS, control_masks
from slt_compress.evidence.metrics import Metrics, Reference, Remembering, reestimate_batchnorm
from slt_compress.evidence.sampling import FirstRows
from slt_compress.gates import Learned, Magnitude
from slt_compress.gates.gating import Gates, scores_of
from slt_compress.masks import Masks
from slt_compress.searching.events import Part, Result, Watched, unheard
from slt_compress.searching.settings import phase_at
from slt_compress.searching.setup import SearchSetup
from slt_compress.searching.threads import threads
from slt_compress.sites.layouts import Blocks
from slt_compress.sites.sites import SitePlan
from slt_compress.sites.unit_gains import UnitGains, factors_of
from slt_compress.storage.freeing import release
from slt_compress.storage.probe import Probe, make_probe

# What a mask is selected by on the held-out slice: the first of these that is measured, smallest.
_SELECTED_BY = ("loss", "kl")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Masks and the evidence for them; all tensors on the CPU."""

    plan: SitePlan
    scores: Mapping[str, Tensor]
    masks: Masks
    gains: Mapping[str, float]
    unit_gains: Mapping[str, UnitGains]
    tuned: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    history: tuple[Mapping[str, object], ...]
    metrics: Mapping[str, Metrics | None]
    controls: Mapping[str, Metrics]
    probe: Probe | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """Measures masks of one search on the gated module.

    `on_test` and `on_held_out` are the dense network on these batches, if it is compared with.
    """

    setup: SearchSetup
    gates: Gates
    on_test: Reference | None
    on_held_out: Reference | None

    @classmethod
    def of(cls, setup: SearchSetup, gates: Gates) -> Measuring:
        """What measures the masks of a search while its gates are on."""
        test, held_out = (
            Remembering(gates.opened) if setup.workload.compare else None for _ in range(2)
        )
        return cls(setup=setup, gates=gates, on_test=test, on_held_out=held_out)

    def held_out_loss(self, scores: Mapping[str, Tensor]) -> float:
        """Loss of the mask of these scores on the held-out slice.

        Raises:
            SltError: the metrics hold none of the losses that a mask can be selected by.
        """
        masks, held_out = self.setup.binarize(scores_of(scores)), self.setup.workload.held_out
        with self.gates.holding(scores):
            metrics = self._masked(masks, held_out, self.on_held_out, limit=20)
        for key in _SELECTED_BY:
            if key in metrics:
                return metrics[key]
        raise SltError(
            f"the held-out metrics are {', '.join(metrics) or 'empty'}, and a mask is selected by "
            f"{' or '.join(_SELECTED_BY)}: set training.selections=0 to take the last scores"
        )

    def conclude(
        self,
        trained: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        dense: Metrics,
        history: tuple[Mapping[str, object], ...],
    ) -> SearchResult:
        """The mask of the scores, the controls beside it, and what all of them achieve.

        `trained` holds the scores, and what was trained beside them.
        """
        scores = scores_of(trained)
        with self.gates.holding(trained):
            return self.conclude_masks(self.setup.binarize(scores), weights, dense, history, scores)

    def conclude_masks(
        self,
        masks: Masks,
        weights: Mapping[str, Tensor],
        dense: Metrics,
        history: tuple[Mapping[str, object], ...],
        scores: Mapping[str, Tensor] | None = None,
    ) -> SearchResult:
        """As `conclude`, for the masks; without scores there are no metrics of soft gates."""
        setup, scores = self.setup, scores or {}
        if setup.controls != "none":
            setup.tell(Part("controls"))
        controls, notes = self._controls(masks, weights)
        soft = self._soft(scores, setup.learned) if setup.learned and scores else None
        by_site, by_unit = self._gains(masks)
        setup.tell(Part("mask"))
        with kept_buffers(setup.module):
            self.gates.mask(masks, factors_of(by_site, by_unit))
            buffers = self._reestimate()
            hard = self.measure(setup.workload.test, self.on_test)
            probe = self._probe()
        release()
        if "magnitude" in controls:
            controls["magnitude"] = controls["magnitude"] or hard
        metrics = {"dense": dense, "hard": hard, "soft": soft}
        setup.tell(Result(metrics, 1.0 - masks.density))
        return SearchResult(
            plan=setup.plan, scores=scores, masks=masks, gains=by_site, unit_gains=by_unit,
            tuned={n: p.detach().cpu().clone() for n, p in self.gates.tuned.items()},
            buffers=buffers,
            weights=weights, history=history,
            metrics=metrics,
            controls=controls, probe=probe, notes=notes,
        )  # fmt: skip

    def measure(self, batches: Iterable[Any], reference: Reference | None) -> Metrics:
        """Metrics of the network as its gates are, beside the dense one where that is given."""
        setup = self.setup
        watched = batches if setup.tell is unheard else Watched(batches, setup.tell)
        return setup.workload.measure(setup.module, watched, reference=reference)

    def _gains(self, masks: Masks) -> tuple[dict[str, float], dict[str, UnitGains]]:
        """The gains of sites, and those of units; the former are a part of the latter."""
        by_site, layouts = self.setup.gains(masks), self.setup.plan.layouts
        by_unit: dict[str, UnitGains] = {}
        for name, gains in self.gates.unit_gains.items():
            layout = layouts[name]
            if isinstance(layout, Blocks) and name in masks:
                scale = torch.tensor(by_site.pop(name, 1.0), dtype=torch.float32)
                by_unit[name] = UnitGains.of(layout, gains.detach().cpu() * scale, masks[name])
        return by_site, by_unit

    def _masked(
        self, masks: Masks, batches: Iterable[Any], reference: Reference | None, *, limit: int = 50
    ) -> Metrics:
        """Metrics under a mask, with BatchNorm re-estimated for it and put back afterwards."""
        with kept_buffers(self.setup.module):
            self.gates.mask(masks, factors_of(*self._gains(masks)))
            self._reestimate(limit)
            metrics = self.measure(batches, reference)
        release()
        return metrics

    def _controls(
        self, masks: Masks, weights: Mapping[str, Tensor]
    ) -> tuple[dict[str, Metrics], tuple[str, ...]]:
        """Metrics of the controls, and how many examples they are of where not of all.

        That of magnitude is empty where the mask itself is the one of the largest weights: the
        two differ in the choice among equal weights only.
        """
        setup = self.setup
        if setup.controls == "none":
            return {}, ()
        own = type(setup.method) is Magnitude
        kinds = [kind for kind in CONTROLS if not (own and kind == "magnitude")]
        first = FirstRows(setup.workload.test)
        test = setup.workload.test if setup.controls == "full" else first
        measured = {
            kind: self._masked(control, test, self.on_test)
            for kind, control in control_masks(
                masks, weights, setup.training.seed, setup.plan.layouts, kinds
            )
        }
        note = (
            f"controls are measured on the first {first.examples} test examples, which is enough "
            "for 1 percentage point; evaluation.controls=full measures all"
        )
        return {kind: measured.get(kind, {}) for kind in CONTROLS}, (note,) if first.cut else ()

    def _soft(self, scores: Mapping[str, Tensor], method: Learned) -> Metrics:
        """Metrics of the gates at the end, without noise; rounded ones if they always were."""
        setup, gates = self.setup, self.gates
        setup.tell(Part("soft"))
        phase = replace(phase_at(setup.training, 1.0, 0), noise=False)
        phase = replace(phase, hard=setup.training.rounded == 1.0)
        with torch.no_grad():
            for name, score in gates.scores.items():
                score.copy_(scores[name])
        ranked = gates.ranked_()
        start = dict.fromkeys(ranked, 0.0)
        shifts = method.shifts(ranked, setup.budget, setup.budget.density, phase, start)
        with kept_buffers(setup.module):
            gates.sample(phase, shifts)
            self._reestimate()
            return self.measure(setup.workload.test, self.on_test)

    def _reestimate(self, limit: int = 50) -> dict[str, Tensor]:
        """Re-estimate BatchNorm on training batches; the buffers that changed."""
        workload = self.setup.workload
        return reestimate_batchnorm(
            self.setup.module, workload.train, workload.forward, limit=limit
        )

    def _probe(self) -> Probe | None:
        """A few made-up inputs and the masked network's outputs on them, computed on the CPU."""
        module, workload = self.setup.module, self.setup.workload
        if not workload.probe:
            return None
        self.setup.to_cpu_()
        module.eval()
        with torch.no_grad(), threads(self.setup.probe_threads):
            return make_probe(workload.probe, partial(workload.forward, module))
