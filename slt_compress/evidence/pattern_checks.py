"""Pattern checks: prove that masks have the shape and the units that a budget asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from slt_compress.errors import BudgetError, TargetError
from slt_compress.masks import Masks
from slt_compress.sites.fitting import lay_out_again
from slt_compress.sites.layouts import Grouped, Layout, kept_units
from slt_compress.sites.patterns import Pattern, parse_pattern
from slt_compress.storage.bits import bits
from slt_compress.tickets import Units
from slt_compress.tickets.provenance import Provenance


def pattern_held(
    known: Provenance,
    module: nn.Module,
    masks: Masks,
    weights: Mapping[str, Tensor],
    *,
    stored: bool,
) -> tuple[bool, str]:
    """Whether the recorded pattern holds in `masks` of the sites of `module`, and a sentence.

    The layout of each site is derived again from the module. Where the masks are not `stored` but
    read from the zeros of a dense export, a weight that is 0 at the origin may still be kept.
    """
    unseen = {
        name: torch.zeros_like(mask) if stored else ~mask & (bits(weights[name]) == 0)
        for name, mask in masks.items()
    }
    try:
        pattern = parse_pattern(known.pattern)
        if pattern.kind == "unstructured":
            return True, "unstructured: any mask fits"
        laid = lay_out_again(masks, pattern, module).layouts
        layouts = {name: _in_order(name, layout, known, masks) for name, layout in laid.items()}
    except (BudgetError, TargetError) as error:
        return False, str(error)
    lost = [name for name in masks if name not in layouts]
    if lost:
        return False, f"{lost[0]} cannot hold the pattern {pattern.text}"
    broken = [name for name in masks if not layouts[name].holds(masks[name], unseen[name])]
    if broken:
        return False, f"{len(broken)} of {len(masks)} masks break {pattern.text}, first {broken[0]}"
    if not pattern.counts_units:
        detail = f"all {len(masks)} masks are {pattern.text}"
        if known.orders:
            detail += f", {len(known.orders)} of them in a stored order of inputs"
        return True, detail
    return _counted(pattern, known, masks, unseen, layouts)


def _in_order(name: str, layout: Layout, known: Provenance, masks: Masks) -> Layout:
    """The layout in the recorded order of inputs, if there is one.

    Raises:
        BudgetError: the site has no such order.
    """
    order = known.orders.get(name)
    if order is None:
        return layout
    if not isinstance(layout, Grouped) or len(order) != masks[name].shape[layout.dim]:
        raise BudgetError(f"an order of {len(order)} inputs is recorded for {name}, which has none")
    return replace(layout, order=order)


def counts_units(known: Provenance) -> bool:
    """Whether the recorded pattern has units that are larger than a weight."""
    try:
        return parse_pattern(known.pattern).counts_units
    except BudgetError:
        return False


def _counted(
    pattern: Pattern,
    known: Provenance,
    masks: Masks,
    unseen: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
) -> tuple[bool, str]:
    """The exact count of units; a unit whose weights are all 0 at the origin may be kept or not."""
    kept = hidden = gated = 0
    for name, mask in masks.items():
        seen = kept_units(layouts[name], mask)
        blank = ~kept_units(layouts[name], mask | ~unseen[name])
        kept, gated = kept + int(seen.count_nonzero()), gated + seen.numel()
        hidden += int(blank.count_nonzero())
    wanted = max(1, round(known.density * gated))
    right = (
        known.counts.units == Units(kept=wanted, gated=gated) and kept <= wanted <= kept + hidden
    )
    return right, (
        f"{kept:,} of {gated:,} units of the pattern {pattern.text} are kept, the budget of "
        f"{known.density:g} asks for {wanted:,}"
    )
