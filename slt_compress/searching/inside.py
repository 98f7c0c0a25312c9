"""Confining: a search inside another ticket, where what that one removed stays removed."""

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
from slt_compress.sites.dead_weights import silenced_lines
from slt_compress.sites.fitting import ceiling, fit_again, plan_sites
from slt_compress.sites.layouts import Inside
from slt_compress.sites.patterns import parse_pattern
from slt_compress.sites.sites import SitePlan
from slt_compress.storage.files import sha256_tensors
from slt_compress.tickets import Ticket, read_ticket
from slt_compress.tickets.provenance import provenance_of


def sites_of(checkpoint: Checkpoint, recipe: Recipe) -> SitePlan:
    """The sites that a search by this recipe gates, confined to the ticket of `recipe.inside`.

    Raises:
        TargetError: no parameter is left to gate.
        BudgetError: the budget cannot be met on them.
        TicketError: the ticket is damaged, of other weights, or gates what the search does not.
    """
    module, budget = checkpoint.module, recipe.budget()
    plan = plan_sites(module, recipe.targets, budget, gate_head=not checkpoint.trained_head)
    if recipe.inside is None:
        return plan
    if budget.pattern != "unstructured" or budget.densities:
        raise BudgetError("inside goes with the pattern unstructured and takes no densities")
    ticket = read_ticket(recipe.inside)
    _check_weights(module, ticket)
    plan = confined(plan, ticket, module)
    _check_room(plan, budget, ticket.path)
    return plan


def confined(plan: SitePlan, ticket: Ticket, module: nn.Module) -> SitePlan:
    """The plan, where only what `ticket` keeps, and what has an effect then, may be kept.

    Without effect are weights that read a removed neuron or channel, or feed a removed head.

    Raises:
        TicketError: the ticket gates what the plan does not.
    """
    lost = [n for n, m in ticket.masks.items() if n not in plan.layouts and _adds(module, n, m)]
    if lost:
        raise TicketError(f"{ticket.path} gates {lost[0]}, which this search does not")
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
    widest = ceiling(plan, budget)
    if budget.density <= widest:
        return
    if round(budget.density * units) > room:
        raise BudgetError(
            f"inside {path} are {room:,} of {units:,} weights: the sparsity is at least "
            f"{1 - room / units:.4g}, not {1 - budget.density:g}"
        )
    raise BudgetError(
        f"a layer has not the room inside {path} for its share at a sparsity of "
        f"{1 - budget.density:g} (from {1 - widest:.4g} on it has): use --set scope=global or a "
        f"--set floor below {budget.floor:g}"
    )


def _check_weights(module: nn.Module, ticket: Ticket) -> None:
    """Refuse a ticket of other weights; on the meta device there are none to tell by."""
    shapes = {name: tuple(mask.shape) for name, mask in ticket.masks.items()}
    weights = site_weights(module, shapes)
    if any(weight.is_meta for weight in weights.values()):
        return
    if sha256_tensors(weights) != provenance_of(ticket).weights_hash:
        raise TicketError(
            f"{ticket.path} is of other weights: search inside it with its source, init and seed"
        )


def _without_effect(module: nn.Module, ticket: Ticket) -> Mapping[str, Tensor]:
    """The weights that a ticket of whole neurons, channels or heads leaves without effect."""
    pattern = parse_pattern(str(ticket.budget.get("pattern", "unstructured")))
    if not pattern.silences:
        return {}
    own = fit_again(ticket.masks, pattern, module)
    return silenced_lines(module, own, ticket.masks, heads=pattern.kind == "head")[0]
