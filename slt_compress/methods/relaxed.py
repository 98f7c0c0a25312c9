"""`relaxed`: continuously relaxed Bernoulli gates from a clamped Gaussian, on an exact budget."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.methods.base import Phase
from slt_compress.methods.sampled import Sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed(Sampled):
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
        spread, prior_spread: of the first scores, see `Sampled`.
    """

    sigma: float = 0.5
    sigma_end: float = 0.2
    name: ClassVar[str] = "relaxed"

    def __post_init__(self) -> None:
        if self.sigma <= 0 or not 0 < self.sigma_end <= 1:
            raise RecipeError(
                "relaxed needs sigma > 0 and 0 < sigma_end <= 1, "
                f"not {self.sigma} and {self.sigma_end}"
            )

    def law(self, phase: Phase) -> GaussianLaw:
        """The clamped Gaussian at this phase's sigma."""
        return GaussianLaw(sigma=self.sigma * (1.0 + phase.annealed * (self.sigma_end - 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianLaw:
    """z = clamp(x + sigma * eps, 0, 1)."""

    sigma: float
    threshold: ClassVar[float] = 0.5

    def keep_probability_(self, centred: Tensor) -> Tensor:
        """Phi((x - 1/2) / sigma)."""
        scaled = centred.sub_(0.5).div_(sqrt(2.0) * self.sigma)
        return scaled.erf_().mul_(0.5).add_(0.5)

    def noise_(self, blank: Tensor, mean: float, generator: torch.Generator) -> Tensor:
        """Gaussian noise around `mean`."""
        return blank.normal_(mean, self.sigma, generator=generator)

    def gate_(self, noisy: Tensor) -> Tensor:
        """The clamp."""
        return noisy.clamp_(0.0, 1.0)

    def slope_(self, noisy: Tensor) -> Tensor:
        """1 inside (0, 1), else 0."""
        return (noisy.sub_(0.5).abs_() < 0.5).to(noisy.dtype)
