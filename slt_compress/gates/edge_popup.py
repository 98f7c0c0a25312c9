"""`edge-popup`: hard masks with straight-through gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from slt_compress.gates.base import Phase, Sample, Suited
from slt_compress.gates.sampled import Sampled, sampled_weight
from slt_compress.sites.budget import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePopup(Sampled):
    """Edge-popup (Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?").

    The forward pass of every step keeps the highest scores; the backward pass treats the mask as
    the identity, so that dL/ds = dL/dW_eff * W (section 3, eq. 4). Where this deviates from the
    paper: scores rank by value, not by magnitude (unless signed); the density may follow a
    schedule; the budget's scope decides between the same share in every layer, as in the paper,
    and one global ranking.

    Attributes:
        spread, prior_spread, prior, signed, signed_start: see `Sampled`.
    """

    name: ClassVar[str] = "edge-popup"

    @property
    def suited(self) -> tuple[Suited, ...]:
        """SGD, as its authors have it."""
        return (Suited(optimizer="sgd", lr=1e-1), Suited(optimizer="adam", lr=3e-2))

    def law(self, phase: Phase) -> StraightThrough:
        """The step function, with the gradient of the identity."""
        return StraightThrough()

    def shifts(
        self,
        scores: Mapping[str, Tensor],
        budget: Budget,
        density: float,
        phase: Phase,
        last: Mapping[str, float],
    ) -> dict[str, float]:
        """The exact order statistic of each site, at every step."""
        hard = replace(phase, hard=True)
        # slots=True creates the class a second time; super() without arguments refers to the first
        return super(EdgePopup, self).shifts(scores, budget, density, hard, last)

    def effective(self, score: Tensor, weight: Tensor, sample: Sample) -> Tensor:
        """`weight` if the score is above the shift, else 0; the gradient ignores the step."""
        hard = replace(sample, phase=replace(sample.phase, hard=True, noise=False))
        return sampled_weight(score, weight, hard, self.law(sample.phase), signed=self.signed)


@dataclass(frozen=True, slots=True, kw_only=True)
class StraightThrough:
    """The step at 0, with slope 1 everywhere in the backward pass."""

    threshold: ClassVar[float] = 0.0

    def keep_probability_(self, centred: Tensor) -> Tensor:
        """1 above 0."""
        return (centred > 0.0).to(centred.dtype)

    def noise_(self, blank: Tensor, mean: float, generator: torch.Generator) -> Tensor:
        """No noise."""
        return blank.fill_(mean)

    def gate_(self, noisy: Tensor) -> Tensor:
        """The step."""
        return (noisy > 0.0).to(noisy.dtype)

    def slope_(self, noisy: Tensor) -> Tensor:
        """1."""
        return noisy.fill_(1.0)
