"""One-shot methods: scores that are read off the weights, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude:
    """Keep the weights of the largest absolute value (Janowsky 1989; Han et al. 2015).

    Weights of equal magnitude, which is all of a layer under a signed-constant init, would be
    kept in row-major order; a seeded jitter below the spacing of fp32 orders them instead.
    """

    name: ClassVar[str] = "magnitude"

    def score(self, weight: Tensor, key: int) -> Tensor:
        """Absolute value in fp64; equal ones are told apart by a factor below 1 + 2^-25.

        The term behind the factor tells zeros apart; it is far below the least fp32 number.
        """
        generator = torch.Generator().manual_seed(key)
        jitter = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        magnitude = weight.detach().float().cpu().abs().double()
        return magnitude * (1.0 + jitter * 2.0**-25) + jitter * 2.0**-200


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Keep a uniformly random choice of weights: the control that any method has to beat."""

    name: ClassVar[str] = "random"

    def score(self, weight: Tensor, key: int) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(key))
