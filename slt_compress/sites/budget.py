"""The budget: how many weights may be kept, met at every step and exactly at the end.

Pure functions on mappings from site names to score tensors with one score per unit. Higher scores
are kept first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Literal

from torch import Tensor

from slt_compress.errors import BudgetError
from slt_compress.masks import Masks, packed
from slt_compress.sites.keys import Streamed, keys_of
from slt_compress.sites.layouts import ELEMENTWISE, Elementwise, Layout
from slt_compress.sites.names import own_densities, type_of
from slt_compress.sites.order_statistics import histogram, root
from slt_compress.sites.patterns import Pattern, parse_pattern
from slt_compress.sites.ranking import Ranking
from slt_compress.storage.freeing import releasing

Scope = Literal["global", "type", "layer"]
Normalise = Literal["none", "rms"]
Scores = Mapping[str, Tensor]
# (score - shift) -> probability that the unit is kept, elementwise
KeepProbability = Callable[[Tensor], Tensor]
# sites that compete, and how much they keep together -> how much of it each of them takes
Mass = Callable[[Sequence[str], float], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many of the gated weights, or of the units of a pattern, may be kept.

    Attributes:
        density: kept fraction of the gated weights, in (0, 1].
        scope: which sites compete: all of them (`global`), those of one type (`type`, such as all
            `q_proj`), or none (`layer`: each keeps the same fraction).
        pattern: shape of the mask, see `slt_compress.sites.patterns`.
        floor: each competing site keeps at least this fraction of the density, so that a greedy
            ranking cannot empty a layer; in [0, 1].
        densities: densities of sites by patterns of names (as in `Targets`); the other sites
            share what remains.
        normalise: `rms` divides the scores of a site by their rms before they compete with others.
    """

    density: float
    scope: Scope = "global"
    pattern: str = "unstructured"
    floor: float = 0.1
    densities: Mapping[str, float] = field(default_factory=dict)
    normalise: Normalise = "none"

    def __post_init__(self) -> None:
        for density in (self.density, *self.densities.values()):
            if not 0.0 < density <= 1.0:
                raise BudgetError(
                    f"a density of {density} is outside (0, 1] "
                    f"(a sparsity of {1 - density:g} is outside [0, 1))"
                )
        if self.scope not in ("global", "type", "layer"):
            raise BudgetError(f"unknown scope {self.scope!r}; known: global, type, layer")
        if self.normalise not in ("none", "rms"):
            raise BudgetError(f"unknown normalise {self.normalise!r}; known: none, rms")
        if not 0.0 <= self.floor <= 1.0:
            raise BudgetError(f"a floor of {self.floor} is outside [0, 1]")
        pattern = self.shape
        if pattern.contradicts(self.density):
            raise BudgetError(
                f"the pattern {pattern.text} keeps {pattern.first} of {pattern.second} weights, a "
                f"sparsity of {1 - (pattern.density or 0):g}: a target of {1 - self.density:g} "
                "contradicts it"
            )
        if pattern.density is not None and self.densities:
            raise BudgetError(
                f"the pattern {pattern.text} fixes one density, so `densities` cannot be given"
            )

    @property
    def shape(self) -> Pattern:
        """The pattern, parsed."""
        return parse_pattern(self.pattern)


def binarize(scores: Scores, budget: Budget, layouts: Mapping[str, Layout] | None = None) -> Masks:
    """Round scores to masks of the weights that keep exactly `round(density x units)` units.

    Without `layouts` each weight is a unit. N:M keeps the N highest scores of every group. With
    the scope `layer` every site keeps its share, rounded by largest remainder so that the total is
    exact. Ties are broken by the order of the sites, then row-major.

    Raises:
        BudgetError: a score is NaN, or the budget does not fit the sites.
    """
    made_of = scores.weights if isinstance(scores, Streamed) else scores
    for name, values in made_of.items():
        if bool(values.isnan().any()):
            raise BudgetError(f"the scores of {name} hold NaN: the search diverged, lower its lr")
    if layouts is None:
        layouts = dict.fromkeys(scores, ELEMENTWISE)
    if budget.shape.density is not None:
        centred = ((name, layouts[name].centre(scores[name])) for name in scores)
        chosen = ((name, score > 0.0) for name, score in centred)
        return Masks.made(packed(releasing(chosen)), {})
    plain = all(isinstance(layouts[name], Elementwise) for name in scores)
    if not plain or budget.normalise != "none":  # they compete as they are only one by one
        made_of = scores = {name: layouts[name].centre(score) for name, score in scores.items()}
    ranking = Ranking(keys_of(scores))
    chosen = (
        (name, layouts[name].expand(mask.reshape(made_of[name].shape)))
        for names, kept in _integer_groups(scores, ranking, budget, budget.density)
        for name, mask in ranking.masks(names, kept)
    )
    return Masks.made(packed(releasing(chosen), order=scores), {})


def binarize_signed(
    scores: Scores, budget: Budget, layouts: Mapping[str, Layout] | None = None
) -> Masks:
    """As `binarize`, by the absolute scores; kept units with a negative score are flipped."""
    masks = binarize({name: score.abs() for name, score in scores.items()}, budget, layouts)
    negative = {name: score.detach().cpu().signbit() for name, score in scores.items()}
    if layouts is not None:
        negative = {name: layouts[name].expand(sign) for name, sign in negative.items()}
    return Masks(masks, {name: sign & masks[name] for name, sign in negative.items()})


def hard_thresholds(scores: Scores, budget: Budget, density: float) -> dict[str, float]:
    """The exact order statistic of each site: at `density`, the scores above it are kept."""
    thresholds: dict[str, float] = {}
    ranking = Ranking(keys_of(scores))
    for names, kept in _integer_groups(scores, ranking, budget, density):
        thresholds.update(dict.fromkeys(names, ranking.value(names, kept)))
    return thresholds


def soft_shifts(
    scores: Scores,
    budget: Budget,
    density: float,
    keep_probability: KeepProbability,
    start: Mapping[str, float],
) -> dict[str, float]:
    """The shift of each site at which the expected number of kept units meets `density`.

    There is one scalar per group of sites, times the scale of a site's scores if they are
    normalised. A bracketed secant search on histograms of the scores finds it, beginning at the
    last step's `start`. The relative error of the count is below 1e-2 if `keep_probability` rises
    over more than a hundredth of the range of the scores. At density 1 the shift is -inf.
    """
    if density >= 1.0:
        return dict.fromkeys(scores, float("-inf"))
    histograms = {name: histogram(score) for name, score in scores.items()}
    scales = _scales(scores, budget)

    def expected(names: Iterable[str], shift: float) -> float:
        parts = ((*histograms[name], shift * scales[name]) for name in names)
        return sum(float(counts @ keep_probability(values - at)) for values, counts, at in parts)

    def solve(names: Sequence[str], kept: float) -> float:
        if kept >= sum(scores[name].numel() for name in names):
            return float("-inf")
        guess = start[names[0]] / scales[names[0]]
        guess = guess if isfinite(guess) else 0.0
        return root(lambda shift: expected(names, shift) - kept, guess, tolerance=1e-5 * kept)

    def mass(names: Sequence[str], kept: float) -> dict[str, float]:
        shift = solve(names, kept)
        return {name: expected([name], shift) for name in names}

    shifts: dict[str, float] = {}
    sizes = {name: score.numel() for name, score in scores.items()}
    for names, kept in _groups(sizes, budget, density, mass):
        shift = solve(names, kept)
        shifts.update({name: shift * scales[name] for name in names})
    return shifts


def pools(
    sizes: Mapping[str, int], budget: Budget, density: float
) -> list[tuple[list[str], float]]:
    """Group sites (name -> units) into pools that compete, each with its own density.

    Sites with a density of their own come first, then the others by scope. While `density` is
    above the budget's, densities of individual sites are raised in proportion.

    Raises:
        BudgetError: a pattern of names matches no site, two patterns contradict each other, or
            they leave too few or too many units to the other sites.
    """
    total = sum(sizes.values())
    own = own_densities(sizes, budget.densities, budget.density)
    if own and budget.density < 1.0:
        extra = (density - budget.density) / (1.0 - budget.density)
        own = {name: share + extra * (1.0 - share) for name, share in own.items()}
    others = [name for name in sizes if name not in own]
    taken = sum(share * sizes[name] for name, share in own.items())
    if not others:  # their densities add up to the whole, up to rounding
        return [([name], min(1.0, share * density * total / taken)) for name, share in own.items()]
    alone = [([name], share) for name, share in own.items()]
    room = sum(sizes[name] for name in others)
    share = (density * total - taken) / room if own else density
    members: dict[str, list[str]] = {}
    for name in others:
        rivals = {"global": "", "type": type_of(name), "layer": name}[budget.scope]
        members.setdefault(rivals, []).append(name)
    return [*alone, *((names, share) for names in members.values())]


def _groups(
    sizes: Mapping[str, int],
    budget: Budget,
    density: float,
    mass: Mass,
) -> list[tuple[list[str], float]]:
    """Split the sites into groups that share one threshold, each with the count it may keep.

    `mass(group, kept)` gives how much of `kept` each site of a group takes when all compete.
    """
    found: list[tuple[list[str], float]] = []
    for names, share in pools(sizes, budget, density):
        found += _above_floors({name: sizes[name] for name in names}, budget.floor, share, mass)
    return found


def _above_floors(
    pool: Mapping[str, int],
    floor: float,
    density: float,
    mass: Mass,
) -> list[tuple[list[str], float]]:
    """Split off the sites of a pool that would fall below their floor.

    Each of them forms a group of its own, at exactly its floor.
    """
    free = dict(pool)
    alone: list[tuple[list[str], float]] = []
    kept = density * sum(pool.values())
    if len(pool) == 1 or floor == 0.0:
        return [(list(pool), kept)]
    # One unit each, if the budget has that many beyond the floors; together they fit in it.
    least = min(1.0, (1.0 - floor) * kept / len(pool))
    floors = {n: max(least, floor * density * size) for n, size in pool.items()}
    while True:
        taken = mass(list(free), kept)
        short = [name for name in free if taken[name] < floors[name]]
        # The floors sum to at most `kept`, so all sites can fall short only through rounding.
        if not short or len(short) == len(free):
            return [(list(free), kept), *alone]
        for name in short:
            alone.append(([name], floors[name]))
            kept -= floors[name]
            del free[name]


def _integer_groups(
    scores: Scores, ranking: Ranking, budget: Budget, density: float
) -> list[tuple[list[str], int]]:
    """`_groups` by exact order statistics, rounded by largest remainder to an exact total.

    `ranking` is that of the scores. Normalised scores only decide how many units each site keeps:
    within a site the order is that of the scores themselves, whatever the division rounds to.
    """
    scales = _scales(scores, budget)
    if any(scale != 1.0 for scale in scales.values()):
        ranking = Ranking(keys_of({n: s.detach() / scales[n] for n, s in scores.items()}))
    groups = _groups(
        ranking.sizes, budget, density, lambda names, kept: ranking.counts(names, round(kept))
    )
    total = max(1, round(density * sum(ranking.sizes.values())))
    sizes = [sum(ranking.sizes[name] for name in names) for names, _ in groups]
    counts = [min(size, max(0, int(kept))) for (_, kept), size in zip(groups, sizes, strict=True)]
    room = [i for i, count in enumerate(counts) if count < sizes[i]]
    by_remainder = sorted(room, key=lambda i: counts[i] - groups[i][1])
    for i in by_remainder[: max(0, total - sum(counts))]:
        counts[i] += 1
    exact = [(names, count) for (names, _), count in zip(groups, counts, strict=True)]
    if budget.normalise == "none":
        return exact
    return [
        ([name], taken)
        for names, count in exact
        for name, taken in ranking.counts(names, count).items()
    ]


def _scales(scores: Scores, budget: Budget) -> dict[str, float]:
    """The divisor of each site's scores before they compete: their rms, or 1."""
    if budget.normalise == "none":
        return dict.fromkeys(scores, 1.0)
    squares = {name: float(score.detach().square().mean()) for name, score in scores.items()}
    return {n: sqrt(s) if isfinite(s) and s > 0.0 else 1.0 for n, s in squares.items()}
