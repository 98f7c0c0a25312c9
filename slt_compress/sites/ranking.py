"""Ranking: exact order statistics of several tensors together, without a copy of them.

A sample of the scores gives a narrow bracket around the value that is looked for. One pass counts
what lies below the bracket and copies what lies inside it, and the value is selected among those
few (Floyd & Rivest 1975, "Expected Time Bounds for Selection"). A bracket that misses is widened,
so that the sample decides about time only, never about the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan, sqrt

import numpy as np
import torch
from torch import Tensor

from slt_compress.sites.keys import Array, Keys

# One score in so many is sampled: a prime, so that no column of a matrix is left out.
_STEP = 61
# Half the width of the first bracket, in standard deviations of a rank in the sample.
_SURE = 4.0
# Up to so many scores the bracket is all of them.
_FEW = 8192


@dataclass(frozen=True, slots=True)
class _Bracket:
    """The keys of one site around [low, high]: how many are below, and those inside, sorted."""

    low: float
    high: float
    below: int
    inside: Array


@dataclass(frozen=True, slots=True)
class _Top:
    """The `kept` highest scores of some sites.

    Attributes:
        value: all keys above it are among them.
        above: how many these are, by site.
        tied: which of the keys equal to `value` are among them too: the first so many of a site,
            or places in it.
    """

    value: float
    above: Mapping[str, int]
    tied: Mapping[str, int | Array]


class Ranking:
    """The order of the scores of several sites, equal ones in the order of sites, then row-major.

    It remembers the last bracket of each site, so that a second question nearby costs no pass. The
    scores must not change as long as it is asked.
    """

    def __init__(self, keys: Keys) -> None:
        self.sizes = keys.sizes
        self._keys = keys
        self._brackets: dict[str, _Bracket] = {}
        self._samples: dict[str, Array] = {}
        self._tops: dict[tuple[tuple[str, ...], int], _Top] = {}

    def value(self, names: Sequence[str], kept: int) -> float:
        """The largest key of these sites with at most `kept` above it; -inf where all are kept.

        Where equal keys straddle the boundary, fewer than `kept` are above it. NaN counts as the
        largest key.
        """
        total = sum(self.sizes[name] for name in names)
        rank = total - kept - 1
        if rank < 0:
            return -inf
        width = _SURE if total > _FEW else inf
        while True:
            value = self._selected(names, rank)
            if value is not None:
                return value
            if self._is_whole(names):
                return nan
            low, high = self._around(names, rank / total, width)
            for name in names:
                below, inside = self._keys.between(name, low, high)
                inside.sort()
                self._brackets[name] = _Bracket(low, high, below, inside)
            width = 8 * width if width == _SURE else inf

    def counts(self, names: Sequence[str], kept: int) -> dict[str, int]:
        """How many of the `kept` highest scores of these sites each of them has."""
        if kept >= sum(self.sizes[name] for name in names):
            return {name: self.sizes[name] for name in names}
        top = self._top(names, kept)
        return {name: top.above[name] + _many(top.tied[name]) for name in names}

    def masks(self, names: Sequence[str], kept: int) -> Iterator[tuple[str, Tensor]]:
        """The mask (bool, flat, CPU) of the `kept` highest scores of these sites, site by site."""
        if kept >= sum(self.sizes[name] for name in names):
            yield from ((name, torch.ones(self.sizes[name], dtype=torch.bool)) for name in names)
            return
        top = self._top(names, kept)
        for name in names:
            mask, tied = self._keys.above(name, top.value), top.tied[name]
            if isinstance(tied, int):
                tied = self._keys.places(name, top.value)[:tied] if tied else _NOWHERE
            mask.numpy()[tied] = True
            yield name, mask

    def _top(self, names: Sequence[str], kept: int) -> _Top:
        question = (tuple(names), kept)
        if question not in self._tops:
            value = self.value(names, kept)
            spans = {name: self._span(name, value) for name in names}
            above = {
                name: self.sizes[name] - self._brackets[name].below - last
                for name, (_, last) in spans.items()
            }
            equal = {name: last - first for name, (first, last) in spans.items()}
            tied = self._tied(equal, value, kept - sum(above.values()))
            self._tops[question] = _Top(value, above, tied)
        return self._tops[question]

    def _span(self, name: str, value: float) -> tuple[int, int]:
        """From where to where the keys inside the bracket of a site equal `value`."""
        inside = self._brackets[name].inside
        first, last = (np.searchsorted(inside, value, side=side) for side in ("left", "right"))
        return int(first), int(last)

    def _tied(
        self, equal: Mapping[str, int], value: float, missing: int
    ) -> Mapping[str, int | Array]:
        """Which of so many equal keys of each site are kept, `missing` in all."""
        exact = self._keys.exact
        if exact is None or missing in (0, sum(equal.values())):
            first: dict[str, int] = {}
            for name, count in equal.items():
                first[name] = min(missing, count)
                missing -= first[name]
            return first
        places = {
            name: self._keys.places(name, value) if count else _NOWHERE
            for name, count in equal.items()
        }
        scores = np.concatenate([exact(n, at) for n, at in places.items() if at.size])
        kept = np.zeros(scores.size, dtype=np.bool_)
        kept[np.argsort(-scores, kind="stable")[:missing]] = True  # equal ones in order
        parts = np.split(kept, np.cumsum(list(equal.values()))[:-1])
        return {n: at[part] for (n, at), part in zip(places.items(), parts, strict=True)}

    def _selected(self, names: Sequence[str], rank: int) -> float | None:
        """The key of this rank, if it lies inside the brackets, which have to be the same."""
        brackets = [self._brackets[name] for name in names if name in self._brackets]
        if len(brackets) < len(names) or len({(b.low, b.high) for b in brackets}) > 1:
            return None
        place = rank - sum(bracket.below for bracket in brackets)
        if not 0 <= place < sum(bracket.inside.size for bracket in brackets):
            return None
        inside = np.concatenate([bracket.inside for bracket in brackets])
        inside.partition(place)
        return float(inside[place])

    def _is_whole(self, names: Sequence[str]) -> bool:
        brackets = (self._brackets.get(name) for name in names)
        return all(b is not None and b.low == -inf and b.high == inf for b in brackets)

    def _around(self, names: Sequence[str], share: float, width: float) -> tuple[float, float]:
        """A bracket around the key that `share` of all are below, by the sample."""
        if width == inf:
            return -inf, inf
        for name in names:
            if name not in self._samples:
                self._samples[name] = self._keys.sample(name, _STEP)
        sample = np.concatenate([self._samples[name] for name in names])
        margin = width * sqrt(share * (1.0 - share) * sample.size) + width
        first, last = int(share * sample.size - margin), int(share * sample.size + margin) + 1
        within = [index for index in (first, last) if 0 <= index < sample.size]
        sample.partition(within or 0)
        low = float(sample[first]) if first in within else -inf
        high = float(sample[last]) if last in within else inf
        return (-inf, inf) if isnan(low) or isnan(high) else (low, high)


_NOWHERE: Array = np.empty(0, dtype=np.int64)


def _many(tied: int | Array) -> int:
    return tied if isinstance(tied, int) else tied.size
