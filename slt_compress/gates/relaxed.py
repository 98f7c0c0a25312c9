"""`relaxed`: continuously relaxed Bernoulli gates from a clamped Gaussian, on an exact budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import ClassVar

import torch
from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.gates.base import Phase, Sample, Suited
from slt_compress.gates.sampled import Sampled
from slt_compress.sites.budget import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed(Sampled):
    """Gaussian gates: z = clamp(mu - tau + sigma * eps, 0, 1), eps ~ N(0, 1).

    The gate is that of Tsayag & Lindenbaum 2026 ("Uncovering a Winning Lottery Ticket with
    Continuously Relaxed Bernoulli Gates") after Yamada et al. 2020 ("Feature Selection using
    Stochastic Gates", eq. 5); mu is the score. Where this deviates from the paper:

    * the paper has no tau and adds lambda * sum Phi(mu / sigma) to the loss. Here every step
      solves for one scalar per group of sites, such that the expected share of gates that round
      to 1, mean Phi((mu - tau - 1/2) / sigma), is the scheduled density;
    * sigma falls linearly to `sigma_end` instead of staying constant;
    * the last phase uses the rounded gate in the forward pass, with the same gradient;
    * if no step is rounded (`training.hard` is 0, as from a random init), there is no noise. The
      gate is a clamp that narrows from `width` to `width_end`, in units of the rms of the distances
      from the threshold over the site, because the scores then have no scale of their own
      (`ClampLaw`); a step is one of mirror descent, and no forward pass sees a rounded gate;
    * if every step is rounded (`training.hard` is 1), there is no noise, and all that is left of
      the clamp is the gradient that is passed straight through the rounding: 1 within `window` of a
      gate's threshold and 0 beyond;
    * a random init divides each masked weight by the rms of its gates.

    With `penalty` it does none of this and minimises the paper's own objective: loss +
    penalty * sum Phi(mu / sigma) over all gates (divide the penalty by their number for the mean
    that others use), with tau = 0, sigma constant, and neither a rounded phase nor a gain. The
    budget matters only at the end: the mask keeps the highest mu up to its count, however many
    gates the penalty left open, and the soft metric is that of the gates clamp(mu, 0, 1). The
    density in the history is the schedule's, which these gates do not follow.

    Attributes:
        sigma: standard deviation of the noise at the start.
        sigma_end: standard deviation at the end, as a fraction of `sigma`.
        window: how close to its threshold a gate is trained if no step, or every step, is rounded.
        width: half-width of the clamp at the start if no step is rounded; at most the window.
        width_end: half-width at the end.
        penalty: lambda of the paper's own objective; None is the exact budget.
        mu0: mean of the first scores under a penalty, if no prior orders them.
        spread, prior_spread, prior, signed, signed_start: see `Sampled`.
    """

    sigma: float = 0.5
    sigma_end: float = 0.2
    window: float = 1.0
    width: float = 1.0
    width_end: float = 0.005
    penalty: float | None = None
    mu0: float = 0.5
    name: ClassVar[str] = "relaxed"

    def __post_init__(self) -> None:
        Sampled.__post_init__(self)
        if self.sigma <= 0 or not 0 < self.sigma_end <= 1:
            raise RecipeError(
                "relaxed needs sigma > 0 and 0 < sigma_end <= 1, "
                f"not {self.sigma} and {self.sigma_end}"
            )
        if not self.window > 0:
            raise RecipeError(f"method.window must be above 0, not {self.window}")
        if not 0 < self.width_end <= self.width:
            raise RecipeError(
                f"relaxed needs 0 < width_end <= width, not {self.width_end} and {self.width}"
            )
        if self.penalty is not None and (not 0.0 <= self.penalty < inf or self.signed):
            raise RecipeError(
                f"method.penalty of relaxed must be finite and not negative, not {self.penalty}, "
                "and goes with signed=false: it is the paper's own objective"
            )

    @property
    def suited(self) -> tuple[Suited, ...]:
        """SGD with gates that narrow and are never rounded; else Adam with noise."""
        return (Suited(optimizer="sgd", lr=1e-1, hard=0.0), Suited(optimizer="adam", lr=1e-2))

    @property
    def rescales(self) -> bool:
        """False under a penalty: the paper has no gain."""
        return self.penalty is None

    def law(self, phase: Phase) -> GaussianLaw | ClampLaw:
        """The clamped Gaussian at this phase's sigma, or the clamp at this phase's width."""
        if self.penalty is not None:
            return GaussianLaw(sigma=self.sigma)
        if phase.narrowed is not None:
            width = self.width * (self.width_end / self.width) ** phase.narrowed
            return ClampLaw(width=min(width, self.window), window=self.window)
        window = self.window if phase.hard and not phase.noise else None
        sigma = self.sigma * (1.0 + phase.annealed * (self.sigma_end - 1.0))
        return GaussianLaw(sigma=sigma, window=window)

    def start(self, weight: Tensor, prior: Tensor | None, key: int) -> Tensor:
        """As `Sampled.start`; under a penalty around `mu0` if there is no prior."""
        scores = Sampled.start(self, weight, prior, key)
        around = self.penalty is not None and prior is None
        return scores.add_(self.mu0 - 0.5) if around else scores

    def shifts(
        self,
        scores: Mapping[str, Tensor],
        budget: Budget,
        density: float,
        phase: Phase,
        last: Mapping[str, float],
    ) -> dict[str, float]:
        """Tau of each site: 0 under a penalty, else what meets the density."""
        if self.penalty is not None:
            return dict.fromkeys(scores, 0.0)
        if phase.narrowed is not None:  # as many gates above 1/2 as the density says
            phase = replace(phase, hard=True)
        return Sampled.shifts(self, scores, budget, density, phase, last)

    def effective(self, score: Tensor, weight: Tensor, sample: Sample) -> Tensor:
        """`weight` times the gate, which is never rounded under a penalty."""
        if self.penalty is not None:
            sample = replace(sample, phase=replace(sample.phase, hard=False))
        elif sample.phase.narrowed is not None:
            sample = replace(sample, phase=replace(sample.phase, noise=False))
        return Sampled.effective(self, score, weight, sample)

    def penalty_of(self, scores: Mapping[str, Tensor], phase: Phase) -> Tensor | None:
        """penalty * sum Phi(mu / sigma): its gradient is penalty * phi(mu / sigma) / sigma."""
        if self.penalty is None:
            return None
        sums = [torch.special.ndtr(score / self.sigma).sum() for score in scores.values()]
        return self.penalty * torch.stack(sums).sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianLaw:
    """z = clamp(x + sigma * eps, 0, 1); with a `window`, the gradient reaches that many rms."""

    sigma: float
    window: float | None = None
    threshold: ClassVar[float] = 0.5

    @property
    def inside(self) -> tuple[float, float] | None:
        """The clamp's bounds, where its slope is the gradient.

        The lower one is where z - 1/2 leaves -1/2 in fp32.
        """
        return (2.0**-26, 1.0) if self.window is None else None

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
        """1 inside (0, 1), or within the window around 1/2; else 0."""
        distance = noisy.sub_(0.5).abs_()
        if self.window is None:
            return distance.lt_(0.5)
        rms = torch.linalg.vector_norm(distance) / sqrt(distance.numel())
        return distance.le_(self.window * rms)


# Share of a wide clamp in a narrow one: it keeps the gate strictly rising within the window.
_TAIL = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ClampLaw:
    """A clamp without noise, z = clamp(1/2 + d / (2 * width * rms), 0, 1), d = x - 1/2.

    The rms is that of d over the site. A hundredth of z is a clamp of the half-width `window`, so
    that z rises strictly within the window. There it has an inverse, which is the mirror map of
    the update: scores are the dual variables of the gates, and a step moves them by the gradient of
    the loss with respect to the gates, at the gates of the forward pass (mirror descent; Nemirovski
    & Yudin 1983, Bubeck 2015 section 4.2). The slope of z is therefore not a factor of the update.
    Gates beyond the window are 0 or 1 and do not move.
    """

    width: float
    window: float
    threshold: ClassVar[float] = 0.5

    def keep_probability_(self, centred: Tensor) -> Tensor:
        """1 where the gate is above 1/2."""
        return (centred > 0.5).to(centred.dtype)

    def noise_(self, blank: Tensor, mean: float, generator: torch.Generator) -> Tensor:
        """No noise."""
        return blank.fill_(mean)

    def gate_(self, noisy: Tensor) -> Tensor:
        """The clamp with its tails."""
        distance = noisy.sub_(0.5)
        rms = _rms(distance)
        tail = (distance * (0.5 / (self.window * rms))).add_(0.5).clamp_(0.0, 1.0)
        narrow = distance.mul_(0.5 / (self.width * rms)).add_(0.5).clamp_(0.0, 1.0)
        return narrow.lerp_(tail, _TAIL)

    def slope_(self, noisy: Tensor) -> Tensor:
        """Of the gate in mirror coordinates: 1 within the window, else 0."""
        distance = noisy.sub_(0.5).abs_()
        return distance.le_(self.window * _rms(distance))


def _rms(distance: Tensor) -> Tensor:
    """Root mean square, above 0 also where all distances are 0."""
    least = torch.finfo(distance.dtype).tiny
    rms: Tensor = torch.linalg.vector_norm(distance) / sqrt(distance.numel())
    return rms.clamp_min(least)
