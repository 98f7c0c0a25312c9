"""The budget: how many weights may be kept, met at every step and exactly at the end.

Pure functions on mappings from site names to score tensors. A higher score is kept first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from slt_compress.errors import BudgetError
from slt_compress.masks import Masks

Scope = Literal["global", "layer"]
Scores = Mapping[str, Tensor]
# (score - shift) -> probability that the gate ends kept, elementwise
KeepProbability = Callable[[Tensor], Tensor]

PATTERNS = ("unstructured",)
_BINS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many of the gated weights may be kept.

    Attributes:
        density: kept fraction of the gated weights, in (0, 1].
        scope: `global` ranks all sites together; `layer` keeps the same fraction of each.
        pattern: shape of the mask; only `unstructured` is available.
        floor: no site is left with less than this fraction of the target density (scope
            `global`), so that a greedy ranking cannot empty a layer; in [0, 1].
    """

    density: float
    scope: Scope = "global"
    pattern: str = "unstructured"
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise BudgetError(
                f"a density of {self.density} is outside (0, 1] "
                f"(a sparsity of {1 - self.density:g} is outside [0, 1))"
            )
        if self.scope not in ("global", "layer"):
            raise BudgetError(f"unknown scope {self.scope!r}; known: global, layer")
        if self.pattern not in PATTERNS:
            raise BudgetError(f"unknown pattern {self.pattern!r}; known: {', '.join(PATTERNS)}")
        if not 0.0 <= self.floor <= 1.0:
            raise BudgetError(f"a floor of {self.floor} is outside [0, 1]")


def cubic_density(progress: float, *, start: float, target: float, ramp: float) -> float:
    """Density at `progress` in [0, 1]: from `start` to `target` over the first `ramp` of it.

    The cubic of gradual pruning (Zhu & Gupta 2017, "To prune, or not to prune", eq. 1), in
    densities instead of sparsities.
    """
    if progress >= ramp:
        return target
    return target + (start - target) * (1.0 - progress / ramp) ** 3


def binarize(scores: Scores, budget: Budget) -> Masks:
    """Round scores to masks that keep exactly `round(density x gated)` weights.

    With scope `layer` every site keeps its share, rounded by largest remainder so that the total
    is exact. Equal scores are kept in the order of the sites, then row-major.

    Raises:
        BudgetError: a score is NaN.
    """
    for name, score in scores.items():
        if bool(score.isnan().any()):
            raise BudgetError(f"the scores of {name} hold NaN: the search diverged, lower its lr")
    masks: dict[str, Tensor] = {}
    for names, kept in _integer_groups(scores, budget, budget.density):
        flat = torch.cat([scores[name].detach().reshape(-1) for name in names])
        pieces = torch.split(_top(flat, kept), [scores[name].numel() for name in names])
        for name, piece in zip(names, pieces, strict=True):
            masks[name] = piece.reshape(scores[name].shape)
    return Masks({name: masks[name] for name in scores})


def binarize_signed(scores: Scores, budget: Budget) -> Masks:
    """As `binarize` by the size of the scores; kept weights of a negative score are flipped."""
    masks = binarize({name: score.abs() for name, score in scores.items()}, budget)
    flips = {name: score.detach().cpu().signbit() & masks[name] for name, score in scores.items()}
    return Masks(masks, flips)


def hard_thresholds(scores: Scores, budget: Budget, density: float) -> dict[str, float]:
    """The exact order statistic of each site: scores above it are kept at `density`."""
    thresholds: dict[str, float] = {}
    for names, kept in _integer_groups(scores, budget, density):
        value = _threshold(torch.cat([scores[name].detach().reshape(-1) for name in names]), kept)
        thresholds.update(dict.fromkeys(names, value))
    return thresholds


def soft_shifts(
    scores: Scores,
    budget: Budget,
    density: float,
    keep_probability: KeepProbability,
    start: Mapping[str, float],
) -> dict[str, float]:
    """The shift of each site at which the expected number of kept weights meets `density`.

    One scalar per group of sites, solved by a bracketed secant search from the last step's
    `start` on histograms of the scores; the relative error of the count is below 1e-2 where
    `keep_probability` rises over more than a hundredth of the range of the scores. At density 1
    the shift is -inf.
    """
    if density >= 1.0:
        return dict.fromkeys(scores, float("-inf"))
    histograms = {name: _histogram(score) for name, score in scores.items()}

    def expected(names: Iterable[str], shift: float) -> float:
        parts = (histograms[name] for name in names)
        return sum(float(counts @ keep_probability(values - shift)) for values, counts in parts)

    def solve(names: Sequence[str], kept: float) -> float:
        guess = start[names[0]] if isfinite(start[names[0]]) else 0.0
        return _root(lambda shift: expected(names, shift) - kept, guess, tolerance=1e-5 * kept)

    def mass(group: Scores, kept: float) -> dict[str, float]:
        shift = solve(list(group), kept)
        return {name: expected([name], shift) for name in group}

    shifts: dict[str, float] = {}
    for names, kept in _groups(scores, budget, density, mass):
        shifts.update(dict.fromkeys(names, solve(names, kept)))
    return shifts


def _histogram(score: Tensor) -> tuple[Tensor, Tensor]:
    """Values and how often each occurs (float64, CPU): the scores, or the centres of their bins.

    One pass over the scores; the search for a shift then costs the same for any model.
    """
    if score.numel() <= _BINS:
        values = score.detach().reshape(-1).double().cpu()
        return values, torch.ones_like(values)
    low, high = (float(bound) for bound in score.detach().aminmax())
    if low == high:
        return torch.tensor([low]).double(), torch.tensor([score.numel()]).double()
    # bincount of the bin numbers: several times faster than histc on a CPU
    bins = (score.detach().float() - low).mul_(_BINS / (high - low)).int().clamp_(max=_BINS - 1)
    counts = bins.reshape(-1).bincount(minlength=_BINS).double().cpu()
    centres = low + (torch.arange(_BINS).double() + 0.5) * ((high - low) / _BINS)
    return centres, counts


def _groups(
    scores: Scores,
    budget: Budget,
    density: float,
    mass: Callable[[Scores, float], Mapping[str, float]],
) -> list[tuple[list[str], float]]:
    """Split the sites into groups that share one threshold, each with the count it may keep.

    `mass(group, kept)` says how much of `kept` each site of a group takes when all compete.
    Sites that would fall below their floor form groups of their own at exactly the floor.
    """
    if budget.scope == "layer" or len(scores) == 1:
        return [([name], density * score.numel()) for name, score in scores.items()]
    free, alone = dict(scores), []
    kept = density * sum(score.numel() for score in scores.values())
    # one weight each, where the budget has that many beside the floors: together they fit in it
    least = min(1.0, (1.0 - budget.floor) * kept / len(scores))
    floors = {n: max(least, budget.floor * density * s.numel()) for n, s in scores.items()}
    while budget.floor > 0.0:
        taken = mass(free, kept)
        short = [name for name in free if taken[name] < floors[name]]
        # the floors sum to at most what is kept: all short happens by rounding only
        if not short or len(short) == len(free):
            break
        for name in short:
            alone.append(([name], floors[name]))
            kept -= floors[name]
            del free[name]
    return [(list(free), kept), *alone]


def _integer_groups(scores: Scores, budget: Budget, density: float) -> list[tuple[list[str], int]]:
    """`_groups` by exact order statistics, rounded by largest remainder to an exact total."""
    groups = _groups(scores, budget, density, _count_top)
    total = max(1, round(density * sum(score.numel() for score in scores.values())))
    sizes = [sum(scores[name].numel() for name in names) for names, _ in groups]
    counts = [max(0, floor(kept)) for _, kept in groups]
    room = [i for i, count in enumerate(counts) if count < sizes[i]]
    by_remainder = sorted(room, key=lambda i: counts[i] - groups[i][1])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return [(names, count) for (names, _), count in zip(groups, counts, strict=True)]


def _count_top(group: Scores, kept: float) -> dict[str, float]:
    flat = torch.cat([score.detach().reshape(-1) for score in group.values()])
    pieces = torch.split(_top(flat, round(kept)), [score.numel() for score in group.values()])
    return {name: float(piece.sum()) for name, piece in zip(group, pieces, strict=True)}


def _threshold(flat: Tensor, kept: int) -> float:
    """The largest value with at most `kept` scores above it; fewer where equal scores straddle."""
    if kept >= flat.numel():
        return float("-inf")
    rank = flat.numel() - kept - 1
    if flat.device.type == "cpu":  # numpy's introselect is several times faster than kthvalue
        return float(np.partition(flat.numpy(), rank)[rank])
    return float(flat.kthvalue(rank + 1).values)


def _top(flat: Tensor, kept: int) -> Tensor:
    """Mask of the `kept` highest scores; equal scores are taken in order."""
    threshold = _threshold(flat, kept)
    keep = flat > threshold
    missing = kept - int(keep.count_nonzero())
    if missing:
        keep[(flat == threshold).nonzero().reshape(-1)[:missing]] = True
    return keep


def _root(excess: Callable[[float], float], guess: float, *, tolerance: float) -> float:
    """Root of a decreasing function by the Illinois variant of the secant search."""
    width = 0.05
    low = high = guess
    at_low = at_high = excess(guess)
    if abs(at_low) <= tolerance:
        return guess
    while at_low < 0.0:
        high, at_high = low, at_low
        low, width = low - width, width * 2
        at_low = excess(low)
    while at_high > 0.0:
        low, at_low = high, at_high
        high, width = high + width, width * 2
        at_high = excess(high)
    middle, side = guess, 0
    for _ in range(60):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = excess(middle)
        if abs(value) <= tolerance or high - low < 1e-9:
            break
        if value > 0.0:
            low, at_low = middle, value
            at_high *= 0.5 if side == 1 else 1.0
            side = 1
        else:
            high, at_high = middle, value
            at_low *= 0.5 if side == -1 else 1.0
            side = -1
    return middle
