"""The kernel of every sampled gate: z = squash(score - shift + noise), times the weight.

The methods differ in the noise and the squashing function, which a `Law` holds. Nothing but score
and weight is saved for backward: the noise is drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

import torch
from torch import Tensor

from slt_compress.budget import Budget, hard_thresholds, soft_shifts
from slt_compress.methods.base import Phase, Sample


class Law(Protocol):
    """Noise and squashing function of a relaxed gate; in place wherever a name ends in `_`."""

    @property
    def threshold(self) -> float:
        """score - shift above which the noiseless gate rounds to 1."""

    def keep_probability_(self, centred: Tensor) -> Tensor:
        """P(gate > 1/2) where score - shift is `centred`."""

    def noise_(self, blank: Tensor, mean: float, generator: torch.Generator) -> Tensor:
        """Fill `blank` with noise around `mean`."""

    def gate_(self, noisy: Tensor) -> Tensor:
        """The gate in [0, 1]."""

    def slope_(self, noisy: Tensor) -> Tensor:
        """Derivative of the gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What every method with a sampled gate shares; its law is what makes it that method.

    Attributes:
        spread: standard deviation of the first scores around 1/2 where nothing orders them.
        prior_spread: range of the first scores around 1/2 where a prior orders them.
    """

    spread: float = 0.01
    prior_spread: float = 8.0

    def law(self, phase: Phase) -> Law:
        """Noise and squashing function at this phase of the search."""
        raise TypeError(f"{type(self).__name__} has no law")

    def start(self, weight: Tensor, prior: Tensor | None, key: int) -> Tensor:
        """Scores around 1/2: ordered by `prior` where there is one, else a narrow Gaussian."""
        if prior is not None:
            return 0.5 + self.prior_spread * (prior.float().cpu() - 0.5)
        generator = torch.Generator().manual_seed(key)
        return 0.5 + self.spread * torch.randn(weight.shape, generator=generator)

    def shifts(
        self,
        scores: Mapping[str, Tensor],
        budget: Budget,
        density: float,
        phase: Phase,
        last: Mapping[str, float],
    ) -> dict[str, float]:
        """Tau of each site: of the expected rounded gates, or of the exact order statistic."""
        law = self.law(phase)
        if phase.hard:
            exact = hard_thresholds(scores, budget, density)
            return {name: value - law.threshold for name, value in exact.items()}
        return soft_shifts(scores, budget, density, law.keep_probability_, last)

    def effective(self, score: Tensor, weight: Tensor, sample: Sample) -> Tensor:
        """`weight` times the gate; saves nothing for backward but `score` and `weight`."""
        return sampled_weight(score, weight, sample, self.law(sample.phase))


def sampled_weight(score: Tensor, weight: Tensor, sample: Sample, law: Law) -> Tensor:
    """`weight` times the gate (rounded in a hard phase), over the rms of the gates if asked for."""
    product: Tensor = _SampledGate.apply(score, weight, sample, law)
    return product


class _SampledGate(torch.autograd.Function):
    """Effective weight of one site. The noise is drawn again in backward instead of stored."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, weight: Tensor, sample: Sample, law: Law) -> Tensor:
        if sample.phase.hard:
            gate = (score > sample.shift + law.threshold).to(score.dtype)
        else:
            gate = law.gate_(_noisy(score, sample, law))
        scale = _inverse_rms(gate) if sample.rescale else 1.0
        ctx.save_for_backward(score, weight)
        ctx.sample, ctx.law, ctx.scale = sample, law, scale
        return gate.mul_(weight).mul_(scale).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        score, weight = ctx.saved_tensors
        slope = ctx.law.slope_(_noisy(score, ctx.sample, ctx.law))
        gradient = slope.mul_(grads[0]).mul_(weight).mul_(ctx.scale)
        return gradient, None, None, None


def _noisy(score: Tensor, sample: Sample, law: Law) -> Tensor:
    """score - shift, with this sample's noise where the phase has noise."""
    if not sample.phase.noise:
        return score - sample.shift
    generator = torch.Generator(score.device).manual_seed(sample.key)
    return law.noise_(torch.empty_like(score), -sample.shift, generator).add_(score)


def _inverse_rms(gate: Tensor) -> Tensor:
    """1 / rms of the gates, on the gates' device; 1 where all are zero."""
    rms = torch.linalg.vector_norm(gate) / sqrt(gate.numel())
    return torch.where(rms > 0, 1.0 / rms, torch.ones_like(rms))
