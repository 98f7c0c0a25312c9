"""Settings of the training of scores, and the learning rate and phase they give each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, inf, pi
from typing import Literal

from slt_compress.errors import RecipeError
from slt_compress.gates import Learned, Phase
from slt_compress.gates.base import HARD, OptimizerName, Suited
from slt_compress.searching.schedules import Schedule
from slt_compress.sites.budget import Budget

Precision = Literal["no", "bf16", "fp16"]
LrSchedule = Literal["linear", "cosine"]
BatchNormPolicy = Literal["batch", "frozen"]
Recompute = Literal["none", "blocks"]
StateDtype = Literal["fp32", "bf16"]
ControlsMode = Literal["none", "fast", "full"]
# On pretrained weights one setting suits every method.
_PRETRAINED: tuple[Suited, ...] = (Suited(optimizer="adam", lr=2e-2),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How the scores are trained.

    Attributes:
        steps: optimiser steps; None is `epochs` times the batches of an epoch, or 2,000 if `epochs`
            is None too.
        epochs: passes over the training split, if `steps` is None.
        batch_size: examples in a step.
        optimizer: of the scores: `adam`, or `sgd` with Nesterov momentum 0.9; None, here and in
            `lr`, `lr_schedule` and `hard`, takes what the bake-off found best for the method and
            the start (`with_defaults`; docs/bake-off.md).
        lr: its learning rate.
        lr_schedule: `linear` is constant and falls linearly to 0 at the end, `cosine` falls all
            the way.
        decay: share of the search, at its end, over which a linear `lr` falls.
        weight_decay: pull of the scores towards 0, added to their gradient.
        clip: largest norm of the gradient of all scores together; None clips nothing.
        ema: decay per step of the running mean of the scores, from which masks are made; smaller in
            the first steps. At 0 masks are made from the last scores.
        ramp: share of the search over which the density falls to its target.
        schedule: how it falls: `cubic`, `linear`, `exponential` or not at all (`constant`).
        anneal: share of the search, at its end, over which the relaxation is annealed.
        hard: share of the search, at its end, with rounded gates in the forward pass; at 1 there is
            no noise either. At 0 no step is rounded, and `relaxed` narrows its gates instead.
        start_density: density at the first step; None is 1/2 for a random init, 1 otherwise.
        selections: how often a mask is measured on the held-out slice in the last phase.
        patience: the search ends after this many measurements in a row without a better one;
            None never ends early.
        polish: exchange kept for removed weights at the end (`swaps`), if that does not raise the
            loss on the held-out slice.
        batchnorm: `batch` normalises with the statistics of each batch, `frozen` with those of
            the dense network.
        seed: seed of everything random in the search.
        device: torch device; None takes the one that accelerate chooses.
        precision: of the forward pass: `no` (as the weights are), `bf16` or `fp16` autocast.
        max_time: seconds after which the schedule is at its end, whichever step that is.
        accumulate: a batch goes through the network in so many parts, one after another.
        recompute: `blocks` runs each block again in the backward pass instead of keeping what it
            made, for a third more time; `none` keeps it.
        state: of the optimizer and the running mean: `fp32`, or `bf16` in half the memory, which
            gives another mask.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 64
    optimizer: OptimizerName | None = None
    lr: float | None = None
    lr_schedule: LrSchedule | None = None
    decay: float = 0.3
    weight_decay: float = 0.0
    clip: float | None = None
    ema: float = 0.99
    ramp: float = 0.6
    schedule: Schedule = "cubic"
    anneal: float = 0.6
    hard: float | None = None
    start_density: float | None = None
    selections: int = 4
    patience: int | None = None
    polish: bool = False
    batchnorm: BatchNormPolicy = "batch"
    seed: int = 0
    device: str | None = None
    precision: Precision = "no"
    max_time: float | None = None
    accumulate: int = 1
    recompute: Recompute = "none"
    state: StateDtype = "fp32"

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "epochs",
            "batch_size",
            "lr",
            "max_time",
            "clip",
            "patience",
            "accumulate",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                raise RecipeError(f"training.{name} must be above 0 and finite, not {value}")
        for name in ("decay", "ramp", "anneal", "hard"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise RecipeError(f"training.{name} is a share in [0, 1], not {value}")
        if not 0.0 <= self.ema < 1.0:
            raise RecipeError(f"training.ema is a decay in [0, 1), not {self.ema}")
        for name in ("selections", "weight_decay"):
            if getattr(self, name) < 0:
                raise RecipeError(
                    f"training.{name} must not be negative, not {getattr(self, name)}"
                )
        if not 0 <= self.seed < 2**63:  # what a ticket may record
            raise RecipeError(f"training.seed must be in [0, 2**63), not {self.seed}")

    @property
    def rounded(self) -> float:
        """`hard`, or its default if nothing fills it in."""
        return HARD if self.hard is None else self.hard

    def total_steps(self, batches_per_epoch: int) -> int:
        """Optimiser steps of the whole search; at least 1."""
        if self.steps is not None:
            return self.steps
        return 2_000 if self.epochs is None else max(1, round(self.epochs * batches_per_epoch))


def with_defaults(
    training: Training,
    method: Learned,
    budget: Budget,
    *,
    random_init: bool,
    inside: bool = False,
) -> Training:
    """The settings, with what suits the method and the start filled in where they are None.

    Args:
        training: as it was given.
        method, budget: of the search.
        random_init: whether the weights are random.
        inside: whether the search is inside another ticket.

    Raises:
        RecipeError: no learning rate is known for the optimizer that is asked for.
    """
    rows = _suited(method, budget, inside=inside) if random_init else _PRETRAINED
    wanted = training.optimizer or rows[0].optimizer
    row = next((row for row in rows if row.optimizer == wanted), None)
    if row is None:
        if training.lr is None:
            raise RecipeError(f"training.optimizer={wanted} needs training.lr (or --lr)")
        row = Suited(optimizer=wanted, lr=training.lr)
    return replace(
        training,
        optimizer=wanted,
        lr=row.lr if training.lr is None else training.lr,
        lr_schedule=training.lr_schedule or ("cosine" if wanted == "sgd" else "linear"),
        hard=row.hard if training.hard is None else training.hard,
    )


def _suited(method: Learned, budget: Budget, *, inside: bool) -> tuple[Suited, ...]:
    """What suits a method on random weights.

    The steps of SGD are for scores of single weights that only have to rank: not for sums over
    units, for scores that have to change their sign, for gates that stay soft (`penalty`), or
    where most of a site may not be kept.
    """
    soft = inside or budget.shape.counts_units or method.signed or not method.rescales
    rows = tuple(row for row in method.suited if not (soft and row.optimizer == "sgd"))
    return rows or method.suited


def lr_factor(training: Training, progress: float) -> float:
    """The factor on `lr` when `progress`, a share in [0, 1], of the search is over."""
    if training.lr_schedule == "cosine":
        return 0.5 * (1.0 + cos(pi * progress))
    return min(1.0, (1.0 - progress) / max(training.decay, 1e-9))


def phase_at(training: Training, progress: float, index: int) -> Phase:
    """The phase of step `index`, when `progress` of the search is over."""
    annealed = (progress - (1.0 - training.anneal)) / training.anneal if training.anneal else 0.0
    return Phase(
        step=index,
        seed=training.seed,
        annealed=min(1.0, max(0.0, annealed)),
        hard=progress >= 1.0 - training.rounded,
        noise=training.rounded < 1.0,
        narrowed=progress if training.rounded == 0.0 else None,
    )


def lr_of(training: Training) -> float:
    """The learning rate at the start.

    Raises:
        RecipeError: nothing has filled it in.
    """
    if training.lr is None:
        raise RecipeError("training.lr is not given: slt_compress.searching.settings.with_defaults "
                          "fills it in")  # fmt: skip
    return training.lr
