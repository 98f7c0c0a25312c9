"""`hard-concrete` and `gumbel`: gates from logistic noise, on the same exact budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.gates.base import Phase, Suited
from slt_compress.gates.sampled import Sampled

# Louizos, Welling & Kingma 2018, "Learning Sparse Neural Networks through L0 Regularization",
# section 2.2: the sigmoid is stretched to (GAMMA, ZETA) and clamped to [0, 1].
GAMMA, ZETA = -0.1, 1.1
# Smallest distance of a uniform number from 0 and 1, as its logit is taken.
_TINY = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class LogisticLaw:
    """z = clamp(low + (high - low) * sigmoid((unit * x + logit(u)) / temperature), 0, 1).

    x is score - shift and u is uniform; low + high is 1, so that x = 0 gives 1/2 without noise.
    """

    unit: float
    temperature: float
    low: float = 0.0
    high: float = 1.0
    threshold: ClassVar[float] = 0.0

    def keep_probability_(self, centred: Tensor) -> Tensor:
        """sigmoid(unit * x): the sum of logit and noise is above 0."""
        return centred.mul_(self.unit).sigmoid_()

    def noise_(self, blank: Tensor, mean: float, generator: torch.Generator) -> Tensor:
        """Logistic noise, in units of the score, around `mean`."""
        uniform = blank.uniform_(_TINY, 1.0 - _TINY, generator=generator)
        return uniform.logit_().div_(self.unit).add_(mean)

    def gate_(self, noisy: Tensor) -> Tensor:
        """The sigmoid, stretched and clamped."""
        soft = noisy.mul_(self.unit / self.temperature).sigmoid_()
        return soft.mul_(self.high - self.low).add_(self.low).clamp_(0.0, 1.0)

    def slope_(self, noisy: Tensor) -> Tensor:
        """Its derivative, 0 where it is clamped."""
        soft = noisy.mul_(self.unit / self.temperature).sigmoid_()
        # the stretched sigmoid is inside (0, 1) where the sigmoid is this close to 1/2
        alive = (soft - 0.5).abs_() < 0.5 / (self.high - self.low)
        steepness = (self.high - self.low) * self.unit / self.temperature
        return soft.sub_(soft.square()).mul_(steepness).mul_(alive)


@dataclass(frozen=True, slots=True, kw_only=True)
class HardConcrete(Sampled):
    """Hard-concrete gates (Louizos, Welling & Kingma 2018, section 2.2, eq. 10 and 11).

    log alpha is unit * (score - tau): one scalar tau per group of sites meets the budget at every
    step instead of an L0 penalty, and `unit` gives the scores the scale of the Gaussian gate, so
    that one learning rate serves both. The temperature beta falls linearly at the end, and the
    last phase uses the rounded gate with the same gradient.

    Attributes:
        beta: temperature at the start.
        beta_end: the same at the end, as a fraction of `beta`.
        unit: logits in one unit of the score.
        spread, prior_spread, prior, signed, signed_start: see `Sampled`.
    """

    beta: float = 2.0 / 3.0
    beta_end: float = 0.2
    unit: float = 4.0
    name: ClassVar[str] = "hard-concrete"

    def __post_init__(self) -> None:
        Sampled.__post_init__(self)
        _check(self.name, beta=self.beta, beta_end=self.beta_end, unit=self.unit)

    @property
    def suited(self) -> tuple[Suited, ...]:
        """Adam."""
        return (Suited(optimizer="adam", lr=3e-2),)

    def law(self, phase: Phase) -> LogisticLaw:
        """The logistic gate at this phase's temperature."""
        beta = self.beta * (1.0 + phase.annealed * (self.beta_end - 1.0))
        return LogisticLaw(unit=self.unit, temperature=beta, low=GAMMA, high=ZETA)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gumbel(Sampled):
    """Binary Gumbel-softmax gates (Jang, Gu & Poole 2017; Maddison, Mnih & Teh 2017).

    The difference of two Gumbel variables is logistic: z = sigmoid((kappa * (score - tau) +
    logit(u)) / temperature). As learned masks of large models do, the logits grow by `growth`
    while the temperature falls geometrically to `temperature_end` over the annealing phase.

    Attributes:
        temperature: at the start.
        temperature_end: at the end.
        unit: kappa at the start, logits in one unit of the score.
        growth: factor of kappa at the end.
        spread, prior_spread, prior, signed, signed_start: see `Sampled`.
    """

    temperature: float = 1.0
    temperature_end: float = 0.1
    unit: float = 4.0
    growth: float = 4.0
    name: ClassVar[str] = "gumbel"

    def __post_init__(self) -> None:
        Sampled.__post_init__(self)
        _check(
            self.name, temperature=self.temperature, temperature_end=self.temperature_end,
            unit=self.unit, growth=self.growth,
        )  # fmt: skip

    def law(self, phase: Phase) -> LogisticLaw:
        """The logistic gate at this phase's temperature."""
        fall = (self.temperature_end / self.temperature) ** phase.annealed
        growth = self.growth**phase.annealed
        return LogisticLaw(unit=self.unit * growth, temperature=self.temperature * fall)


def _check(name: str, **options: float) -> None:
    for option, value in options.items():
        if not value > 0.0:
            raise RecipeError(f"method.{option} of {name} must be above 0, not {value}")
