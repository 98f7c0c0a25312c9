"""Counting: histograms of scores, and roots of monotone functions of what they count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_BINS = 1024


def histogram(score: Tensor) -> tuple[Tensor, Tensor]:
    """Values and their counts (float64, CPU): the scores themselves, or the centres of bins.

    This takes one pass over the scores; solving for a shift then costs the same for any model.
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


def root(excess: Callable[[float], float], guess: float, *, tolerance: float) -> float:
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
