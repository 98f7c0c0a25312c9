"""Permuting: an order of the inputs of every N:M mask, found before the search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from slt_compress.gates import Inputs
from slt_compress.searching.events import OnEvent, unheard
from slt_compress.searching.input_norms import observed
from slt_compress.sites.input_orders import input_order
from slt_compress.sites.layouts import Grouped
from slt_compress.sites.sites import Site, SitePlan


def permuted_plan(
    module: nn.Module,
    plan: SitePlan,
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    tell: OnEvent = unheard,
) -> SitePlan:
    """The plan with N:M groups of inputs that suit each other, in each site on its own.

    A weight costs the energy of what it adds to its output, w^2 E[x^2], in the dense network.

    Args:
        module: on the device of the search; comes back as it was.
        plan: its sites, those with groups among them.
        weights: of the sites, on the CPU.
        batches: training batches, of which some are run through the network.
        forward: one forward pass on a batch.
        tell: is told of every batch.
    """
    inputs = observed(module, plan, batches, forward, tell).inputs()
    sites = tuple(
        replace(site, layout=_ordered(site, site.layout, weights[site.name], inputs[site.name]))
        if isinstance(site.layout, Grouped)
        else site
        for site in plan.sites
    )
    return replace(plan, sites=sites)


def _ordered(site: Site, layout: Grouped, weight: Tensor, inputs: Inputs) -> Grouped:
    losses = weight.float().square()
    if inputs.norms is not None:
        losses = losses * inputs.norms.square().float()
    columns = losses.movedim(site.input_dim, -1).flatten(0, -2)
    order = input_order(columns, layout.kept, layout.size)
    return layout if order == tuple(range(len(order))) else replace(layout, order=order)
