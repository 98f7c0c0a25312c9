"""The kernel of every sampled gate: z = squash(score - shift + noise), times the weight.

A signed gate is sign(score) * squash(|score| - shift + noise). The two signs cancel in the chain
rule, so its gradient is the unsigned one at |score|.

Methods differ in noise and squashing function, which a `Law` holds. Only score and weight are saved
for backward: the noise is drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, Protocol

import torch
from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.gates.base import Phase, Prior, Sample, Suited
from slt_compress.gates.passes import bits_between, times_bits, zero_outside, zero_up_to
from slt_compress.sites.budget import Budget, hard_thresholds, soft_shifts


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
    """What all methods with a sampled gate share; the law makes the difference.

    Attributes:
        spread: standard deviation of the first scores around 1/2 if no prior orders them.
        prior_spread: range of the first scores around 1/2 if a prior orders them.
        prior: of a pretrained network: `magnitude`, `wanda` (times the norm of the inputs), `swaps`
            (the mask of `slt_compress.gates.Swaps`) or `none`; a random init has none.
        signed: keep, drop or flip (Koster et al. 2022, "Signing the Supermask"): the budget ranks
            the absolute values of the scores, and a gate has the sign of its score. All gates start
            as keep, around `signed_start`; the weights of a random init have random signs already.
            If a prior orders the scores, gates far above the shift are saturated and do not flip;
            a smaller `prior_spread` lets more of them flip.
        signed_start: centre of the first scores of a signed gate if no prior orders them; to flip,
            a score has to cross 0 from there.
    """

    spread: float = 0.01
    prior_spread: float = 8.0
    prior: Prior = "magnitude"
    signed: bool = False
    signed_start: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.signed_start < inf:
            raise RecipeError(f"method.signed_start must not be negative, not {self.signed_start}")

    @property
    def suited(self) -> tuple[Suited, ...]:
        """Adam, at a rate that does no harm where nothing was measured."""
        return (Suited(optimizer="adam", lr=1e-2),)

    @property
    def rescales(self) -> bool:
        """Always: the signal of a random init keeps its scale."""
        return True

    def law(self, phase: Phase) -> Law:
        """Noise and squashing function at this phase of the search."""
        raise TypeError(f"{type(self).__name__} has no law")

    def start(self, weight: Tensor, prior: Tensor | None, key: int) -> Tensor:
        """Scores around 1/2: ordered by `prior` if there is one, else a narrow Gaussian.

        Signed scores are not negative, so that no gate starts flipped.
        """
        if prior is not None:
            ordered = prior.float().cpu()
            middle = 0.0 if self.signed else 0.5
            return self.prior_spread * (ordered if self.signed else ordered - 0.5) + middle
        generator = torch.Generator().manual_seed(key)
        noise = self.spread * torch.randn(weight.shape, generator=generator)
        return (self.signed_start + noise).abs() if self.signed else 0.5 + noise

    def shifts(
        self,
        scores: Mapping[str, Tensor],
        budget: Budget,
        density: float,
        phase: Phase,
        last: Mapping[str, float],
    ) -> dict[str, float]:
        """Tau of each site: from the expected rounded gates, or the exact order statistic."""
        law = self.law(phase)
        if phase.hard:
            exact = hard_thresholds(scores, budget, density)
            return {name: value - law.threshold for name, value in exact.items()}
        return soft_shifts(scores, budget, density, law.keep_probability_, last)

    def effective(self, score: Tensor, weight: Tensor, sample: Sample) -> Tensor:
        """`weight` times the gate; saves only `score` and `weight` for backward."""
        return sampled_weight(score, weight, sample, self.law(sample.phase), signed=self.signed)

    def penalty_of(self, scores: Mapping[str, Tensor], phase: Phase) -> Tensor | None:
        """None: the shifts meet the budget."""
        return None


def sampled_weight(
    score: Tensor, weight: Tensor, sample: Sample, law: Law, *, signed: bool = False
) -> Tensor:
    """`weight` times the gate (rounded in a hard phase), over the rms of the gates if asked for."""
    product: Tensor = _SampledGate.apply(score, weight, sample, law, signed)
    return product


class _SampledGate(torch.autograd.Function):
    """Effective weight of one site, with nothing saved for backward that is as large as it.

    On a CPU, where drawing is slow, the forward pass of a soft gate notes in a bit per gate whether
    its slope is 1 or 0, if it takes no other values; else the noise is drawn again.
    """

    @staticmethod
    def forward(
        ctx: Any, score: Tensor, weight: Tensor, sample: Sample, law: Law, signed: bool
    ) -> Tensor:
        size = _size(score, sample) if signed else score
        ctx.sample, ctx.law, ctx.scale, ctx.signed = sample, law, None, signed
        ctx.save_for_backward(score, weight)
        ctx.steep = None
        plain = not signed and not sample.rescale and score.shape == weight.shape
        if sample.phase.hard:
            bound = sample.shift + law.threshold
            if plain and score.dtype == weight.dtype:
                return zero_up_to(weight, score, bound)
            gate = torch.gt(size, bound, out=torch.empty_like(score))
        else:
            gate = law.gate_(_noisy(size, sample, law))
            inside = _inside(law)
            if inside is not None and gate.device.type == "cpu":
                ctx.steep = bits_between(gate, *inside)
        if signed:
            gate = gate.copysign_(score)
        spread = sample.layout.expand(gate)  # the gate itself where units are weights
        ctx.scale = _inverse_rms(spread) if sample.rescale else None
        product = gate.mul_(weight) if spread is gate else spread * weight
        return (product if ctx.scale is None else product.mul_(ctx.scale)).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        score, weight = ctx.saved_tensors
        above = grads[0]
        if above.shape != score.shape:
            above = ctx.sample.layout.reduce(above.to(score.dtype) * weight)
            weight = None
        gradient = _times_slope(ctx, score, above.to(score.dtype))
        if weight is not None:
            gradient.mul_(weight)
        return gradient if ctx.scale is None else gradient.mul_(ctx.scale), None, None, None, None


def _times_slope(ctx: Any, score: Tensor, above: Tensor) -> Tensor:
    """A gradient from above times the slope of the gate, in a tensor of its own."""
    if ctx.steep is not None:
        return times_bits(above, ctx.steep)
    size = _size(score, ctx.sample) if ctx.signed else score
    noisy, inside = _noisy(size, ctx.sample, ctx.law), _inside(ctx.law)
    if inside is not None:
        return zero_outside(above, noisy, *inside)
    slope: Tensor = ctx.law.slope_(noisy).mul_(above)
    return slope


def _inside(law: Law) -> tuple[float, float] | None:
    """Between which noisy gates the slope is 1, if it is 0 elsewhere: a law need not say so."""
    inside: tuple[float, float] | None = getattr(law, "inside", None)
    return inside


def _size(score: Tensor, sample: Sample) -> Tensor:
    """The value a signed score competes with; not centred in place, because its sign counts."""
    return sample.layout.centre(score.abs())


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
