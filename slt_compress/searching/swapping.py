"""Swapping: masks by exchanges of weights, block by block through a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.states import evaluating
from slt_compress.checkpoints.tasks import to_device
from slt_compress.errors import RecipeError
from slt_compress.gates import Inputs, Swaps, Wanda
from slt_compress.gates.base import sample_key
from slt_compress.gates.exchanges import Bounds
from slt_compress.gates.gating import Gates
from slt_compress.gates.one_shot import row_offsets
from slt_compress.masks import Masks
from slt_compress.searching.block_passes import Stage, Stream, gathered, stages_of
from slt_compress.searching.input_grams import (
    as_matrix,
    from_matrix,
    matrix_shape,
    seen_grams,
)
from slt_compress.searching.input_norms import seen_inputs, summed_dims, unseen_note
from slt_compress.sites.budget import Budget, binarize
from slt_compress.sites.layouts import Blocks, Grouped, Inside
from slt_compress.sites.sites import Site, SitePlan


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
        self._check()
        counts = start or self._first_masks()
        scores: dict[str, Tensor] = {}
        unseen: dict[str, str] = {}
        device = next(self.module.parameters()).device
        batches = [to_device(b, device) for b in gathered(self.batches, self.method.batches)]
        with torch.no_grad(), evaluating(self.module), opened_afterwards(gates):
            run = partial(self.forward, self.module)
            inputs = _Inputs(
                gates=gates, share=self.method.dense_inputs,
                dense=Stream(module=self.module, run=run, batches=batches),
                masked=Stream(module=self.module, run=run, batches=batches),
            )  # fmt: skip
            for stage in stages_of(self.module, self.plan, run, batches[0]):
                moments, norms, missed = inputs.seen(stage)
                unseen |= missed
                for site in stage.sites:
                    scores[site.name] = self._site_scores(
                        site, counts[site.name], moments.get(site.name), norms[site.name],
                        fixed=start is not None,
                    )  # fmt: skip
                inputs.advance(stage, scores)
        notes = (unseen_note(self.method.name, unseen),) if unseen else ()
        return {name: scores[name] for name in self.plan.layouts}, notes

    def _check(self) -> None:
        if any(isinstance(layout, Blocks) for layout in self.plan.layouts.values()):
            raise RecipeError(
                f"the method swaps exchanges single weights, and a unit of the pattern "
                f"{self.budget.pattern} is larger: use --method wanda"
            )

    def _first_masks(self) -> Masks:
        """As many weights in every row as Wanda keeps; which ones is decided later."""
        scores = {site.name: _places(site, self._key(site)) for site in self.plan.sites}
        return binarize(scores, self.budget, self.plan.layouts)

    def _key(self, site: Site) -> int:
        return sample_key(self.seed, f"start:{site.name}")

    def site_mask(self, site: Site, grams: Tensor | None, start: Tensor | None = None) -> Tensor:
        """The mask of one site.

        Args:
            site: of the plan.
            grams: second moments of its inputs, [groups, C, C]; None exchanges nothing.
            start: mask to start from; None is Wanda's.
        """
        inputs = _norms(site, grams)
        mask = self._first_masks()[site.name] if start is None else start
        return self._site_scores(site, mask, grams, inputs, fixed=start is not None) >= 1.0

    def _site_scores(
        self, site: Site, counts: Tensor, grams: Tensor | None, inputs: Inputs, *, fixed: bool
    ) -> Tensor:
        score = Wanda(per_row=False).score(self.weights[site.name], self._key(site), inputs)
        score, mask = as_matrix(site, score), as_matrix(site, counts)
        if not fixed:
            mask = _best_of_rows(score, mask, _bounds(site))
        if grams is not None:
            weight = as_matrix(site, self.weights[site.name]).float()
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


_Seen = tuple[Mapping[str, Tensor], Mapping[str, Inputs], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """The inputs of one stage after the other, in the masked network so far and in the dense one.

    `share` is that of the dense network; a stream that has no share does not run.
    """

    gates: Gates
    share: float
    dense: Stream
    masked: Stream

    def seen(self, stage: Stage) -> _Seen:
        """What the sites of a stage multiply: second moments, norms, and what cannot be seen.

        The dense stream is behind the stage then, the masked one in front of it.
        """
        found: list[tuple[float, _Seen]] = []
        if self.share > 0.0:
            with self.gates.opened():
                found.append((self.share, _seen(stage, self.dense, self.dense.advance)))
        if self.share < 1.0:
            found.append((1.0 - self.share, _seen(stage, self.masked, self.masked.pass_through)))
        _, (moments, norms, missed) = found[0]
        if len(found) == 1:
            return moments, norms, missed
        mixed = {
            name: sum((share * seen[0][name] for share, seen in found), torch.zeros(()))
            for name in moments
        }
        own = {site.name: _norms(site, mixed[site.name]) for site in stage.sites
               if site.name in mixed}  # fmt: skip
        return mixed, {**norms, **own}, missed

    def advance(self, stage: Stage, scores: Mapping[str, Tensor]) -> None:
        """Put masks on a stage, and take the masked stream behind it."""
        for site in stage.sites:
            gate = self.gates.by_name[site.name]
            gate.kept, gate.mode = scores[site.name] >= 1.0, "masked"
            density = float(gate.kept.double().mean())
            gate.gain = density**-0.5 if gate.rescale and density > 0.0 else 1.0
        if self.share < 1.0:
            self.masked.advance(stage)


def _seen(stage: Stage, stream: Stream, run: Callable[[Stage], None]) -> _Seen:
    with seen_grams(stream.module, stage.sites) as grams:
        others = tuple(site for site in stage.sites if site.name not in grams)
        with seen_inputs(stream.module, SitePlan(sites=others, skipped={})) as seen:
            run(stage)
    means = {name: gram.mean() for name, gram in grams.items()}
    moments = {name: mean for name, mean in means.items() if mean is not None}
    norms = {site.name: _norms(site, means[site.name]) for site in stage.sites
             if site.name in means}  # fmt: skip
    reason = "the forward pass does not call its module"
    blind = dict.fromkeys(means.keys() - moments.keys(), reason)
    return moments, {**norms, **seen.inputs()}, {**seen.unseen(), **blind}


def _places(site: Site, key: int) -> Tensor:
    """The ranks in the rows of Wanda's score, in another order: rows keep as many by either."""
    rows = torch.arange(site.numel, dtype=torch.float64).reshape(matrix_shape(site))
    columns = rows.shape[1]
    return from_matrix(site, rows.remainder_(columns).add_(row_offsets(len(rows), key)) / columns)


def _norms(site: Site, grams: Tensor | None) -> Inputs:
    """Root mean square of every input, laid out as the weight."""
    if grams is None:
        return Inputs(dims=summed_dims(site), norms=None)
    norms = grams.cpu().diagonal(dim1=1, dim2=2).double().clamp_min(0.0).sqrt()
    rows = matrix_shape(site)[0] // len(norms)
    return Inputs(dims=summed_dims(site), norms=from_matrix(site, norms.repeat_interleave(rows, 0)))


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


@contextmanager
def opened_afterwards(gates: Gates) -> Iterator[None]:
    """Open gates at the start of the block and at its end."""
    try:
        for gate in gates.by_name.values():
            gate.mode, gate.flip = "open", None
        yield
    finally:
        for gate in gates.by_name.values():
            gate.mode = "open"
