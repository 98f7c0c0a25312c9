"""First scores: those of a search before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.gates import Inputs, Learned, Magnitude, Method, OneShot, Prior, Swaps, Wanda
from slt_compress.gates.base import sample_key
from slt_compress.gates.gating import gated
from slt_compress.gates.streamed import MagnitudeScores
from slt_compress.searching.events import OnEvent, unheard
from slt_compress.searching.input_norms import observed, unseen_note
from slt_compress.searching.swapping import Swapping
from slt_compress.sites.budget import Budget
from slt_compress.sites.layouts import Blocks, Elementwise, Grouped, Layout, norms
from slt_compress.sites.sites import SitePlan

_PRIORS: Mapping[Prior, OneShot] = {
    "magnitude": Magnitude(),
    "wanda": Wanda(per_row=False),
    "swaps": Swaps(),
}


def first_scores(
    module: nn.Module,
    plan: SitePlan,
    method: Method,
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    *,
    budget: Budget,
    random_init: bool,
    seed: int,
    tell: OnEvent = unheard,
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The scores of a one-shot method, or the first ones of a learned method; and notes.

    On a pretrained network a learned method starts in the order of its prior within each layer.
    `batches` must be training batches.
    """
    ranking, notes = ranking_of(method, random_init=random_init), tuple[str, ...]()
    inputs: Mapping[str, Inputs] = {}
    swapped: Mapping[str, Tensor] = {}
    if isinstance(ranking, Swaps):
        swapping = Swapping(
            module=module, plan=plan, method=ranking, budget=budget, weights=weights,
            batches=batches, forward=forward, seed=seed, tell=tell,
        )  # fmt: skip
        with gated(module, plan) as gates:
            swapped, notes = swapping.scores(gates)
    elif ranking is not None and ranking.calibrated:
        seen = observed(module, plan, batches, forward, tell)
        inputs, unseen = seen.inputs(), seen.unseen()
        notes = (unseen_note(ranking.name, unseen),) if unseen else ()
    scores: dict[str, Tensor] = {}
    for name, layout in plan.layouts.items():
        if isinstance(method, Learned):
            scores[name] = ranks_of(
                method, ranking, name, layout, weights[name], inputs, seed, swapped.get(name)
            )
        elif name in swapped:
            scores[name] = swapped[name]
        elif ranking is not None:
            scores[name] = first_score(ranking, name, layout, weights[name], inputs, seed)
    return scores, notes


def first_score(
    ranking: OneShot,
    name: str,
    layout: Layout,
    weight: Tensor,
    inputs: Mapping[str, Inputs],
    seed: int,
) -> Tensor:
    """What a one-shot method gives the units of one site; `inputs` are those that it needs."""
    seen_here = inputs.get(name)
    unit = norms(layout, weight)
    if seen_here is not None and isinstance(layout, Blocks):
        # a unit is ranked by the norm of its products, so rows and input norms no longer matter
        unit, seen_here = norms(layout, _products(weight, seen_here)), None
    return ranking.score(unit, sample_key(seed, f"start:{name}"), seen_here)


def ranks_of(
    method: Learned,
    ranking: OneShot | None,
    name: str,
    layout: Layout,
    weight: Tensor,
    inputs: Mapping[str, Inputs],
    seed: int,
    ranked: Tensor | None = None,
) -> Tensor:
    """The first scores of a learned method at one site, in the order of `ranking` or `ranked`."""
    if ranked is None and ranking is not None:
        ranked = first_score(ranking, name, layout, weight, inputs, seed)
    unit = norms(layout, weight)
    if name in inputs and isinstance(layout, Blocks):
        unit = norms(layout, _products(weight, inputs[name]))
    key = sample_key(seed, f"start:{name}")
    return method.start(unit, None if ranked is None else _rank(ranked), key)


def streamed_scores(
    method: Method, plan: SitePlan, weights: Mapping[str, Tensor], seed: int
) -> MagnitudeScores | None:
    """The scores of `first_scores` if a look-up can make them from the weight alone, else None."""
    single = all(isinstance(layout, Elementwise | Grouped) for layout in plan.layouts.values())
    if type(method) is not Magnitude or not single:
        return None
    keys = {name: sample_key(seed, f"start:{name}") for name in plan.layouts}
    return MagnitudeScores(weights={name: weights[name] for name in keys}, keys=keys)


def _products(weight: Tensor, inputs: Inputs) -> Tensor:
    """Each weight times the norm of its input, where that was seen."""
    return weight.float() if inputs.norms is None else weight.float() * inputs.norms.float()


def ranking_of(method: Method, *, random_init: bool) -> OneShot | None:
    """What ranks the weights before any training: a one-shot method, or a prior."""
    if not isinstance(method, Learned):
        return method
    return None if random_init else _PRIORS.get(method.prior)


def _rank(score: Tensor) -> Tensor:
    """Rank of each score within its layer, from 0 (lowest) to 1; fp32."""
    order = score.reshape(-1).argsort(stable=True)
    rank = torch.empty(order.numel())
    rank[order] = torch.linspace(0.0, 1.0, order.numel())
    return rank.reshape(score.shape)
