"""Allocation: how many of its units each site keeps, before their masks are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from slt_compress.sites.budget import Budget, Scores, _integer_groups, pools
from slt_compress.sites.keys import keys_of
from slt_compress.sites.ranking import Ranking
from slt_compress.sites.sites import Site


def ranked_counts(scores: Scores, budget: Budget) -> dict[str, int]:
    """How many units each site keeps of those with the highest scores, as `binarize` would.

    Args:
        scores: one per unit, as they compete; they may be `Streamed`.
        budget: without the pattern N:M, whose counts are known.
    """
    ranking = Ranking(keys_of(scores))
    return {
        name: taken
        for names, count in _integer_groups(scores, ranking, budget, budget.density)
        for name, taken in ranking.counts(names, count).items()
    }


def even_counts(sizes: Mapping[str, int], budget: Budget) -> dict[str, int]:
    """The same share of every site, except where `densities` say otherwise; an exact total."""
    shares = pools(sizes, replace(budget, scope="layer"), budget.density)
    wanted = {names[0]: share * sizes[names[0]] for names, share in shares}
    counts = {name: int(wanted[name]) for name in sizes}
    missing = max(1, round(budget.density * sum(sizes.values()))) - sum(counts.values())
    room = [name for name in sizes if counts[name] < sizes[name]]
    for name in sorted(room, key=lambda name: counts[name] - wanted[name])[: max(0, missing)]:
        counts[name] += 1
    return counts


def part_budget(budget: Budget, counts: Mapping[str, int], sites: Sequence[Site]) -> Budget:
    """The budget of a few sites that keep as many units together as `counts` says.

    In the scope `global` they compete; else each keeps its own count. No count may be 0.
    """
    if budget.shape.density is not None:
        return budget
    units = sum(site.units for site in sites)
    density = sum(counts[site.name] for site in sites) / units
    if budget.scope == "global" and not budget.densities:
        return replace(budget, density=density)
    own = {site.name: counts[site.name] / site.units for site in sites}
    return replace(budget, density=density, scope="global", densities=own)
