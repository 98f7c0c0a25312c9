"""Schedules: how the density falls from its start to its target over a search."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["cubic", "linear", "exponential", "constant"]


def density_at(
    progress: float, schedule: Schedule, *, start: float, target: float, ramp: float
) -> float:
    """Density at `progress` in [0, 1]: from `start` to `target` over the first `ramp` of it.

    `cubic` is the schedule of gradual pruning (Zhu & Gupta 2017, "To prune, or not to prune",
    eq. 1) in densities. `linear` falls evenly, `exponential` by the same factor in equal times,
    and `constant` is at its target from the first step.
    """
    if progress >= ramp or schedule == "constant":
        return target
    left = 1.0 - progress / ramp
    if schedule == "exponential":
        return target * float((start / target) ** left)
    return target + (start - target) * left ** (3 if schedule == "cubic" else 1)
