"""Sparklines: a series of numbers as a few characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite

_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """The series in at most `width` characters, each the mean of an equal share of it.

    The lowest and the highest of these means get the lowest and the highest character; a series
    that does not change is drawn at the lowest.
    """
    finite = [value for value in values if isfinite(value)]
    if not finite or width <= 0:
        return ""
    count = min(width, len(finite))
    edges = [index * len(finite) // count for index in range(count + 1)]
    means = [sum(finite[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[round((mean - low) / span * top) if span else 0] for mean in means)
