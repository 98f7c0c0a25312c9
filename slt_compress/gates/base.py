"""What a method is: a way to score every gated weight; the highest scores are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.sites.budget import Budget
from slt_compress.sites.layouts import ELEMENTWISE, Layout

Prior = Literal["magnitude", "wanda", "swaps", "none"]
OptimizerName = Literal["adam", "sgd"]
# Share of the search with rounded gates where nothing else is known to be better.
HARD = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Where in the search a step is.

    Attributes:
        step: index of the step, part of the key of every gate's sample.
        seed: of the search, the other part of that key.
        annealed: how far the relaxation is annealed, from 0 (start value) to 1 (end value).
        hard: whether the forward pass uses the rounded gates.
        noise: whether a soft gate is sampled; if false, it is the gate at eps = 0. A search that is
            rounded from its first step has no noise.
        narrowed: how far the gates are narrowed, from 0 to 1, in a search that is never rounded;
            None in any other.
    """

    step: int
    seed: int
    annealed: float = 0.0
    hard: bool = False
    noise: bool = True
    narrowed: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suited:
    """Settings of the training that suit a method, as the bake-off found them (docs/bake-off.md).

    Attributes:
        optimizer: of the scores.
        lr: its learning rate.
        hard: share of the search, at its end, with rounded gates.
    """

    optimizer: OptimizerName
    lr: float
    hard: float = HARD


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What a gate needs besides its score and weight to draw its sample.

    Attributes:
        shift: the budget's scalar, subtracted from the score (soft) or compared with (hard).
        key: seed of the sample: a pure function of search seed, step and site.
        rescale: divide by the rms of the gates, so that the signal keeps its scale.
        layout: how scores map to weights.
    """

    phase: Phase
    shift: float
    key: int
    rescale: bool
    layout: Layout = ELEMENTWISE


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the weights of one site multiply.

    Attributes:
        dims: dimensions of the weight over which one output sums.
        norms: root mean square of the input of each weight (fp64), of a shape that broadcasts to
            the weight's; None if the inputs cannot be seen.
    """

    dims: tuple[int, ...]
    norms: Tensor | None


@runtime_checkable
class Learned(Protocol):
    """A method whose scores are trained through a relaxed gate."""

    name: ClassVar[str]

    @property
    def suited(self) -> tuple[Suited, ...]:
        """What suits the method on random weights, the best optimizer first."""

    @property
    def signed(self) -> bool:
        """Whether a gate has the sign of its score, and the budget ranks absolute values."""

    @property
    def prior(self) -> Prior:
        """What orders the first scores of a pretrained network."""

    @property
    def rescales(self) -> bool:
        """Whether a random init has a gain that makes up for its removed weights."""

    def start(self, weight: Tensor, prior: Tensor | None, key: int) -> Tensor:
        """First scores (fp32, the shape of `weight`); `prior` is a rank in [0, 1] or None.

        If a unit is larger than a weight, `weight` holds the norm of each unit.
        """

    def shifts(
        self,
        scores: Mapping[str, Tensor],
        budget: Budget,
        density: float,
        phase: Phase,
        last: Mapping[str, float],
    ) -> dict[str, float]:
        """The scalar of each site that meets `density` at this step, warm-started from `last`.

        `scores` are as they compete: absolute if signed, centred for N:M.
        """

    def effective(self, score: Tensor, weight: Tensor, sample: Sample) -> Tensor:
        """`weight` times the sampled gate, in the dtype of `weight`; differentiable in `score`."""

    def penalty_of(self, scores: Mapping[str, Tensor], phase: Phase) -> Tensor | None:
        """A term to add to the loss of a step, differentiable in the scores; or None."""


@runtime_checkable
class OneShot(Protocol):
    """A method that computes its scores from the weights, without training."""

    name: ClassVar[str]
    calibrated: ClassVar[bool]

    def score(self, weight: Tensor, key: int, inputs: Inputs | None = None) -> Tensor:
        """Scores (the shape of `weight`; fp64 if fp32 is too coarse); `key` breaks ties.

        `inputs` is given to a method that is `calibrated`. If a unit is larger than a weight,
        `weight` holds the norm of each unit: of its weights times the norms of their inputs.
        """


Method = Learned | OneShot


def checked(method: Method) -> Method:
    """The method, if it has all members of `Learned` or of `OneShot`; a user's own may lack some.

    Raises:
        RecipeError: it has neither; the message names what it lacks.
    """
    if isinstance(method, Learned | OneShot):
        return method
    kinds = {"Learned": Learned, "OneShot": OneShot}
    lacks = {
        kind: sorted(name for name in _members(role) if not hasattr(method, name))
        for kind, role in kinds.items()
    }
    kind = min(lacks, key=lambda name: len(lacks[name]))
    raise RecipeError(
        f"{type(method).__name__} is not a method: to be a {kind} (slt_compress.gates) it lacks "
        f"{', '.join(lacks[kind])}"
    )


def _members(role: type) -> set[str]:
    return {name for name in {*dir(role), *role.__annotations__} if not name.startswith("_")}


def sample_key(seed: int, text: str) -> int:
    """A 63-bit seed from a search seed and a text, the same on every platform."""
    digest = hashlib.sha256(f"{seed}:{text}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
