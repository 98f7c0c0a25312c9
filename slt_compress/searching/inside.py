"""Searches inside another ticket, which choose among the weights that it kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from slt_compress.anatomy.states import site_weights
from slt_compress.checkpoints import Checkpoint
from slt_compress.errors import BudgetError, TicketError
from slt_compress.searching.recipes import Recipe
from slt_compress.sites.budget import Budget
from slt_compress.sites.dead_weights import dead_lines
from slt_compress.sites.fitting import largest_density, lay_out_again, plan_sites
from slt_compress.sites.layouts import Inside
from slt_compress.sites.patterns import parse_pattern
from slt_compress.sites.sites import SitePlan
from slt_compress.storage.files import sha256_tensors
from slt_compress.tickets import Ticket, read_ticket
from slt_compress.tickets.provenance import provenance_of


def sites_of(checkpoint: Checkpoint, recipe: Recipe) -> SitePlan:
    """The sites that a search with this recipe gates, confined to the ticket of `recipe.inside`.

    Raises:
        TargetError: no parameter is left to gate.
        BudgetError: the budget cannot be met on them.
        TicketError: the ticket is damaged, belongs to other weights, or gates a weight that the
            search does not.
    """
    module, budget = checkpoint.module, recipe.budget()
    plan = plan_sites(module, recipe.targets, budget, gate_head=not checkpoint.trained_head)
    if recipe.inside is None:
        return plan
    if budget.pattern != "unstructured" or budget.densities:
        raise BudgetError(
            "a search inside a ticket needs the pattern 'unstructured' and no densities, not the "
            f"pattern {budget.pattern!r} with {len(budget.densities)} densities"
        )
    ticket = read_ticket(recipe.inside)
    _check_weights(module, ticket)
    plan = confined(plan, ticket, module)
    _check_room(plan, budget, ticket.path)
    return plan


def confined(plan: SitePlan, ticket: Ticket, module: nn.Module) -> SitePlan:
    """The plan, confined to the weights that `ticket` kept and that have an effect in it.

    A weight has no effect if it reads a removed neuron or channel, or feeds a removed head.

    Raises:
        TicketError: the ticket gates a weight that the plan does not.
    """
    lost = [n for n, m in ticket.masks.items() if n not in plan.layouts and _adds(module, n, m)]
    if lost:
        raise TicketError(f"{ticket.path} gates {lost[0]}, which this search does not gate")
    allowed = dict(ticket.masks)
    for name, lines in _without_effect(module, ticket).items():
        if name in plan.layouts:
            allowed[name] = allowed[name] & ~lines if name in allowed else ~lines
    sites = tuple(
        replace(site, layout=Inside(allowed=allowed[site.name])) if site.name in allowed else site
        for site in plan.sites
    )
    return replace(plan, sites=sites)


def _adds(module: nn.Module, name: str, mask: Tensor) -> bool:
    """Whether a mask removes more than the weights themselves say: an import has masks of zeros."""
    weight = site_weights(module, {name: tuple(mask.shape)})[name]
    return weight.is_meta or bool((weight[~mask] != 0).any())


def _check_room(plan: SitePlan, budget: Budget, path: Path) -> None:
    room, units = (sum(getattr(site, key) for site in plan.sites) for key in ("room", "units"))
    widest = largest_density(plan, budget)
    if budget.density <= widest:
        return
    if round(budget.density * units) > room:
        raise BudgetError(
            f"{path} leaves {room:,} of {units:,} weights: the sparsity must be at least "
            f"{1 - room / units:.4g}, not {1 - budget.density:g}"
        )
    raise BudgetError(
        f"{path} leaves too few weights in a layer for its share at a sparsity of "
        f"{1 - budget.density:g}: use a sparsity of at least {1 - widest:.4g}, --scope global or "
        f"--set floor=F with F below {budget.floor:g}"
    )


def _check_weights(module: nn.Module, ticket: Ticket) -> None:
    """Refuse a ticket of other weights; on the meta device there are no weights to compare."""
    shapes = {name: tuple(mask.shape) for name, mask in ticket.masks.items()}
    weights = site_weights(module, shapes)
    if any(weight.is_meta for weight in weights.values()):
        return
    if sha256_tensors(weights) != provenance_of(ticket).weights_hash:
        raise TicketError(
            f"{ticket.path} belongs to other weights: use the source, init and seed of the ticket"
        )


def _without_effect(module: nn.Module, ticket: Ticket) -> Mapping[str, Tensor]:
    """The weights that have no effect in a ticket of whole neurons, channels or heads."""
    pattern = parse_pattern(str(ticket.budget.get("pattern", "unstructured")))
    if not pattern.silences:
        return {}
    own = lay_out_again(ticket.masks, pattern, module)
    return dead_lines(module, own, ticket.masks, heads=pattern.kind == "head")[0]
