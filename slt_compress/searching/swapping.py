"""Swapping: masks by exchanges of weights, block by block through a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.checkpoints.tasks import to_device
from slt_compress.errors import RecipeError
from slt_compress.gates import Inputs, Swaps, Wanda
from slt_compress.gates.base import sample_key
from slt_compress.gates.exchanges import Bounds
from slt_compress.gates.gating import Gates
from slt_compress.gates.one_shot import row_offsets
from slt_compress.gates.streamed import MadeScores
from slt_compress.masks import Masks
from slt_compress.searching.block_passes import Stage, Store, Stream, gathered, stages_of
from slt_compress.searching.events import OnEvent, Watched, unheard
from slt_compress.searching.gradient_energy import gradient_energy
from slt_compress.searching.input_grams import (
    as_matrix,
    from_matrix,
    has_gram,
    matrix_shape,
    sites_in_front_of_batchnorm,
)
from slt_compress.searching.input_norms import seen_inputs, unseen_note
from slt_compress.searching.stage_inputs import StageInputs, calibrating, norms_of
from slt_compress.sites.budget import Budget, binarize
from slt_compress.sites.layouts import Blocks, Grouped, Inside
from slt_compress.sites.sites import Site, SitePlan

# How many of the batches the loss gradient is taken on, which costs three forward passes.
_ENERGY_BATCHES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Swapping:
    """Exchanges through a whole network.

    Attributes:
        module: comes back bit-identical.
        plan: its sites.
        method: how to exchange.
        budget: how many weights the start keeps.
        weights: of the sites, on the CPU.
        batches: training batches.
        forward: one forward pass on a batch.
        seed: of the search.
    """

    module: nn.Module
    plan: SitePlan
    method: Swaps
    budget: Budget
    weights: Mapping[str, Tensor]
    batches: Iterable[Any]
    forward: Callable[[nn.Module, Any], Any]
    seed: int
    tell: OnEvent = unheard

    def scores(
        self, gates: Gates, start: Masks | None = None
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Scores by which `binarize` keeps what the exchanges end with; and notes.

        Kept weights have scores of 1 and more, removed ones less, each in Wanda's order.

        Args:
            gates: on the sites of the module; they are left open.
            start: the mask to start from; None is Wanda's.

        Raises:
            RecipeError: the pattern has units larger than a weight.
        """
        scores: dict[str, Tensor] = {}
        unseen: dict[str, str] = {}
        device = next(self.module.parameters()).device
        batches = [to_device(b, device) for b in gathered(self.batches, self.method.batches)]
        with calibrating(gates):
            walk = self.walk(gates, batches, start)
            for stage in Watched(walk.stages, self.tell):
                made, missed = walk.scores_of(stage)
                scores |= made
                unseen |= missed
                walk.inputs.advance(stage, scores)
        notes = (unseen_note(self.method.name, unseen),) if unseen else ()
        return {name: scores[name] for name in self.plan.layouts}, notes

    def walk(
        self, gates: Gates, batches: Sequence[Any], start: Masks | None = None, store: Store = list
    ) -> SwapWalk:
        """The way through the network stage by stage, from the start; gates are calibrating.

        Args:
            gates, start: as for `scores`.
            batches: on the device of the module.
            store: what keeps the outputs of a stage.

        Raises:
            RecipeError: the pattern has units larger than a weight.
        """
        self._check()
        run = partial(self.forward, self.module)
        energy = self._energy(batches) if self.method.weighs else {}
        streams = [
            Stream(module=self.module, run=run, batches=batches, store=store) for _ in range(2)
        ]
        return SwapWalk(
            swapping=self, energy=energy, fixed=start is not None,
            counts=start or self._first_masks(energy, batches),
            inputs=StageInputs(
                gates=gates, share=self.method.dense_inputs, dense=streams[0], masked=streams[1],
                centred=sites_in_front_of_batchnorm(
                    self.module, self.plan.sites, partial(run, batches[0])
                ),
            ),
            stages=stages_of(self.module, self.plan, run, batches[0]),
        )  # fmt: skip

    def _check(self) -> None:
        if any(isinstance(layout, Blocks) for layout in self.plan.layouts.values()):
            raise RecipeError(
                f"the method swaps exchanges single weights, and a unit of the pattern "
                f"{self.budget.pattern} is larger: use --method wanda"
            )

    def _first_masks(self, energy: Mapping[str, Tensor], batches: Sequence[Any]) -> Masks:
        """How many weights every row keeps; which ones is decided later."""
        if self.method.exchange == "global" and self.budget.shape.density is None:
            scores: Mapping[str, Tensor] = self._losses(energy, batches)
        else:  # as many as Wanda keeps
            sites = {site.name: site for site in self.plan.sites}
            scores = MadeScores(sites, lambda name: _places(sites[name], self._key(sites[name])))
        return binarize(scores, self.budget, self.plan.layouts)

    def _energy(self, batches: Sequence[Any]) -> dict[str, Tensor]:
        """Energy of the loss gradient at every row, with a mean of 1 over all rows."""
        sites = [s for s in self.plan.sites if has_gram(self.module.get_submodule(s.module), s)]
        seed = sample_key(self.seed, "energy")
        energy = gradient_energy(self.module, sites, batches[:_ENERGY_BATCHES], self.forward, seed)
        mean = float(torch.cat(list(energy.values())).mean()) if energy else 0.0
        if not 0.0 < mean < inf:
            raise RecipeError(
                f"method.exchange={self.method.exchange} weighs rows by the loss gradient, whose "
                f"energy is {mean}: use method.exchange=row"
            )
        return {name: value / mean for name, value in energy.items()}

    def _losses(self, energy: Mapping[str, Tensor], batches: Sequence[Any]) -> dict[str, Tensor]:
        """What each weight costs if it alone goes: w^2 G_jj times the energy of its row."""
        with seen_inputs(self.module, self.plan) as seen:
            for batch in batches:
                self.forward(self.module, batch)
        inputs = seen.inputs()
        losses: dict[str, Tensor] = {}
        for site in self.plan.sites:
            norms = inputs[site.name].norms
            if norms is None or site.name not in energy:
                raise RecipeError(
                    f"method.exchange=global ranks all layers by their inputs and gradients, and "
                    f"those of {site.name} cannot be seen: use method.exchange=layer, or leave it "
                    "out with targets.exclude"
                )
            score = Wanda(per_row=False).score(
                self.weights[site.name], self._key(site), inputs[site.name]
            )
            rows = as_matrix(site, score).square() * energy[site.name][:, None]
            losses[site.name] = from_matrix(site, rows)
        return losses

    def _key(self, site: Site) -> int:
        return sample_key(self.seed, f"start:{site.name}")

    def site_mask(self, site: Site, grams: Tensor | None, start: Tensor | None = None) -> Tensor:
        """The mask of one site.

        Args:
            site: of the plan.
            grams: second moments of its inputs, [groups, C, C]; None exchanges nothing.
            start: mask to start from; None is Wanda's.
        """
        inputs = norms_of(site, grams)
        mask = self._first_masks({}, ())[site.name] if start is None else start
        return self.site_scores(site, mask, grams, inputs, fixed=start is not None) >= 1.0

    def site_scores(
        self,
        site: Site,
        counts: Tensor,
        grams: Tensor | None,
        inputs: Inputs,
        *,
        fixed: bool,
        energy: Tensor | None = None,
    ) -> Tensor:
        """Scores of one site, of which those of the weights that are kept are 1 and more.

        Args:
            site: of the plan.
            counts: a mask that keeps as many weights in every row.
            grams: second moments of its inputs, [groups, C, C]; None exchanges nothing.
            inputs: their norms.
            fixed: whether `counts` is the mask to start from, instead of Wanda's.
            energy: what the error of each row counts, [R]; None is 1.
        """
        score = Wanda(per_row=False).score(self.weights[site.name], self._key(site), inputs)
        score, mask = as_matrix(site, score), as_matrix(site, counts)
        if not fixed:
            mask = _best_of_rows(score, mask, _bounds(site))
        if grams is not None:
            weight = as_matrix(site, self.weights[site.name]).float()
            if energy is not None:  # the error of a row is quadratic in its weights
                weight = weight * energy.sqrt().float()[:, None]
            mask = self._improved(weight, mask, grams.cpu(), _bounds(site))
        # in [0, 1), strictly: the largest products of some networks round up to it
        order = (score / (1.0 + score)).clamp_max(1.0 - 2.0**-53)
        return from_matrix(site, order + mask)

    def _improved(self, weight: Tensor, mask: Tensor, grams: Tensor, bounds: Bounds) -> Tensor:
        """The mask after the exchanges, each group of a convolution with its own matrix."""
        rows = len(weight) // len(grams)
        parts = []
        for index, gram in enumerate(grams):
            at = slice(index * rows, (index + 1) * rows)
            parts.append(self.method.improve(weight[at], mask[at], gram, bounds.of(at)))
        return torch.cat(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapWalk:
    """The way of exchanges through a network, stage by stage.

    `counts` keeps as many weights in every row as each stage will; `fixed` says that it is the mask
    to start from.
    """

    swapping: Swapping
    counts: Masks
    fixed: bool
    energy: Mapping[str, Tensor]
    inputs: StageInputs
    stages: tuple[Stage, ...]

    def scores_of(self, stage: Stage) -> tuple[dict[str, Tensor], Mapping[str, str]]:
        """The scores of the sites of the next stage, and why a site saw no inputs."""
        moments, norms, missed = self.inputs.seen(stage)
        scores = {
            site.name: self.swapping.site_scores(
                site, self.counts[site.name], moments.get(site.name), norms[site.name],
                fixed=self.fixed, energy=self.energy.get(site.name),
            )
            for site in stage.sites
        }  # fmt: skip
        return scores, missed


def _places(site: Site, key: int) -> Tensor:
    """The ranks in the rows of Wanda's score, in another order: rows keep as many by either."""
    rows = torch.arange(site.numel, dtype=torch.float64).reshape(matrix_shape(site))
    columns = rows.shape[1]
    return from_matrix(site, rows.remainder_(columns).add_(row_offsets(len(rows), key)) / columns)


def _bounds(site: Site) -> Bounds:
    layout = site.layout
    if isinstance(layout, Grouped):
        return Bounds(group=layout.size)
    if isinstance(layout, Inside):
        return Bounds(allowed=as_matrix(site, layout.allowed))
    return Bounds()


def _best_of_rows(score: Tensor, counts: Tensor, bounds: Bounds) -> Tensor:
    """The highest scores of each row, or of each group in it, as many as `counts` keeps."""
    if bounds.allowed is not None:
        score = score.masked_fill(~bounds.allowed, -1.0)
    size = bounds.group or score.shape[1]
    groups = score.reshape(-1, size)
    ranks = groups.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = counts.reshape(-1, size).sum(1, keepdim=True)
    return (ranks < kept).reshape(score.shape)
