"""`relaxed`: continuously relaxed Bernoulli gates from a clamped Gaussian, on an exact budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from slt_compress.budget import Budget, hard_thresholds, soft_shifts
from slt_compress.errors import RecipeError
from slt_compress.methods.base import Phase, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed:
    """Gaussian gates: z = clamp(mu - tau + sigma * eps, 0, 1), eps ~ N(0, 1).

    The gate is that of Tsayag & Lindenbaum 2026 ("Uncovering a Winning Lottery Ticket with
    Continuously Relaxed Bernoulli Gates") after Yamada et al. 2020 ("Feature Selection using
    Stochastic Gates", eq. 5); mu is the score. Where this deviates from the paper:

    * tau is not there: the paper adds lambda * sum Phi(mu / sigma) to the loss. Here one scalar
      per group of sites is solved at every step so that the expected share of gates that round
      to 1, mean Phi((mu - tau - 1/2) / sigma), is the scheduled density;
    * sigma falls linearly to `sigma_end` instead of staying constant;
    * the last phase uses the rounded gate in the forward pass and the same gradient;
    * a random init divides each masked weight by the rms of its gates.

    Attributes:
        sigma: standard deviation of the noise at the start.
        sigma_end: the same at the end, as a fraction of `sigma`.
        spread: standard deviation of the first scores around 1/2 where nothing orders them.
        prior_spread: range of the first scores around 1/2 where a prior orders them.
    """

    sigma: float = 0.5
    sigma_end: float = 0.2
    spread: float = 0.01
    prior_spread: float = 2.5
    name: ClassVar[str] = "relaxed"

    def __post_init__(self) -> None:
        if self.sigma <= 0 or not 0 < self.sigma_end <= 1:
            raise RecipeError(
                "relaxed needs sigma > 0 and 0 < sigma_end <= 1, "
                f"not {self.sigma} and {self.sigma_end}"
            )

    def start(self, weight: Tensor, prior: Tensor | None, key: int) -> Tensor:
        """Scores around 1/2: ordered by `prior` where there is one, else a narrow Gaussian."""
        generator = torch.Generator().manual_seed(key)
        noise = torch.randn(weight.shape, generator=generator)
        if prior is None:
            return 0.5 + self.spread * noise
        return 0.5 + self.prior_spread * (prior.float().cpu() - 0.5)

    def shifts(
        self,
        scores: Mapping[str, Tensor],
        budget: Budget,
        density: float,
        phase: Phase,
        last: Mapping[str, float],
    ) -> dict[str, float]:
        """Tau of each site: of the expected rounded gates, or of the exact order statistic."""
        if phase.hard:
            exact = hard_thresholds(scores, budget, density)
            return {name: value - 0.5 for name, value in exact.items()}
        width = sqrt(2.0) * self._sigma(phase)
        return soft_shifts(
            scores, budget, density, lambda x: 0.5 + 0.5 * ((x - 0.5) / width).erf_(), last
        )

    def effective(self, score: Tensor, weight: Tensor, sample: Sample) -> Tensor:
        """`weight` times the gate; saves nothing for backward but `score` and `weight`."""
        product: Tensor = _GaussianGate.apply(score, weight, sample, self._sigma(sample.phase))
        return product

    def _sigma(self, phase: Phase) -> float:
        return self.sigma * (1.0 + phase.annealed * (self.sigma_end - 1.0))


class _GaussianGate(torch.autograd.Function):
    """Effective weight of one site. The noise is drawn again in backward instead of stored."""

    @staticmethod
    def forward(ctx: Any, score: Tensor, weight: Tensor, sample: Sample, sigma: float) -> Tensor:
        if sample.phase.hard:
            gate = (score > sample.shift + 0.5).to(score.dtype)
        else:
            gate = _noisy(score, sample, sigma, centre=0.0).clamp_(0.0, 1.0)
        scale = _inverse_rms(gate) if sample.rescale else 1.0
        ctx.save_for_backward(score, weight)
        ctx.sample, ctx.sigma, ctx.scale = sample, sigma, scale
        return gate.mul_(weight).mul_(scale).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        score, weight = ctx.saved_tensors
        # inside (0, 1), written as a distance from 1/2: one pass less over the weights
        alive = _noisy(score, ctx.sample, ctx.sigma, centre=0.5).abs_() < 0.5
        gradient = grads[0].to(score.dtype).mul(weight).mul_(alive).mul_(ctx.scale)
        return gradient, None, None, None


def _noisy(score: Tensor, sample: Sample, sigma: float, *, centre: float) -> Tensor:
    """score - shift - centre, with this sample's noise where the phase has noise."""
    if not sample.phase.noise:
        return score - (sample.shift + centre)
    generator = torch.Generator(score.device).manual_seed(sample.key)
    noise = torch.empty_like(score).normal_(-sample.shift - centre, sigma, generator=generator)
    return noise.add_(score)


def _inverse_rms(gate: Tensor) -> Tensor:
    """1 / rms of the gates, on the gates' device; 1 where all are zero."""
    rms = torch.linalg.vector_norm(gate) / sqrt(gate.numel())
    return torch.where(rms > 0, 1.0 / rms, torch.ones_like(rms))
