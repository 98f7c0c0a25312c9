"""What a method is: a way to give every gated weight a score, the highest of which are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from slt_compress.budget import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Where in the search a step is.

    Attributes:
        step: index of the step, part of the key of every gate's sample.
        seed: of the search, the other part of that key.
        annealed: how far the relaxation is annealed, from 0 (start value) to 1 (end value).
        hard: whether the forward pass uses the rounded gates.
        noise: whether a soft gate is sampled; without, it is the gate at eps = 0.
    """

    step: int
    seed: int
    annealed: float = 0.0
    hard: bool = False
    noise: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a gate needs beside its score and weight to draw its sample.

    Attributes:
        shift: the budget's scalar, subtracted from the score (soft) or compared with (hard).
        key: seed of the sample: a pure function of search seed, step and site.
        rescale: divide by the rms of the gates, so that the signal keeps its scale.
    """

    phase: Phase
    shift: float
    key: int
    rescale: bool


@runtime_checkable
class Learned(Protocol):
    """A method whose scores are trained through a relaxed gate."""

    name: ClassVar[str]

    def start(self, weight: Tensor, prior: Tensor | None, key: int) -> Tensor:
        """First scores (fp32, the weight's shape); `prior` is a rank in [0, 1] or None."""

    def shifts(
        self,
        scores: Mapping[str, Tensor],
        budget: Budget,
        density: float,
        phase: Phase,
        last: Mapping[str, float],
    ) -> dict[str, float]:
        """The scalar of each site that meets `density` at this step, warm-started from `last`."""

    def effective(self, score: Tensor, weight: Tensor, sample: Sample) -> Tensor:
        """`weight` times the sampled gate, in the dtype of `weight`; differentiable in `score`."""


@runtime_checkable
class OneShot(Protocol):
    """A method that reads its scores off the weights, without training."""

    name: ClassVar[str]

    def score(self, weight: Tensor, key: int) -> Tensor:
        """Scores (the weight's shape; fp64 where fp32 is too coarse); `key` orders equal ones."""


Method = Learned | OneShot
