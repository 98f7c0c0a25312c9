"""The state of a search as a value: all that one step needs of those before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from slt_compress.gates.gating import is_extra

Scores = Mapping[str, Tensor]


class EpochBatches(Protocol):
    """Batches that can be gone through again and again, each epoch in its own order."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def __iter__(self) -> Iterator[Any]:
        """The batches in a fixed order."""

    def epoch(self, index: int) -> Iterator[Any]:
        """The batches of one epoch, the same ones in the same order for the same index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The next batch to draw: number `batch` of epoch `epoch`, both from 0."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A batch, and the position after it."""

    batch: Any
    after: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """What the measurements on the held-out slice have chosen so far.

    Attributes:
        scores: the best ones so far, fp32 on the CPU; None before the first measurement.
        loss: theirs.
        worse: measurements in a row that were no better than the best one before.
        points: how many of the points of measurement are over.
    """

    scores: Scores | None = None
    loss: float = 0.0
    worse: int = 0
    points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is known after one optimiser step.

    `total` is `index` + 1 in the last step, also where the time was up before.
    `density` is the scheduled one, met by this step's gates; `soft_metric` is the share of
    rows of this batch that the sampled network gets right, where the task has such a thing.
    """

    index: int
    total: int
    loss: float
    density: float
    target: float
    soft_metric: float | None
    progress: float
    seconds: float
    hard: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchState:
    """A search between two steps.

    A step takes the tensors over and updates them in place, as two sets of scores would not fit
    beside a large model. `copied` before a step gives a state to come back to.

    Attributes:
        scores: of every site, fp32; and beside them what else is trained (`Gates.trained`).
        optimizer: what the optimizer keeps for each score, by its own names.
        scaler: state of the loss scaling in fp16; empty elsewhere.
        mean: running mean of the scores, fp32; empty where `training.ema` is 0.
        shifts: the scalar of each site that met the budget in the last step.
        selected: what the held-out slice has chosen so far.
        position: in the data.
        last: the record of the last step; None before the first.
    """

    scores: Scores
    optimizer: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    scaler: Mapping[str, Any] = field(default_factory=dict)
    mean: Scores = field(default_factory=dict)
    shifts: Mapping[str, float]
    selected: Selected = Selected()
    position: Position = Position()
    last: Step | None = None

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return 0 if self.last is None else self.last.index + 1

    @property
    def latest(self) -> Step:
        """The record of the last step.

        Raises:
            LookupError: no step was taken.
        """
        if self.last is None:
            raise LookupError("no step was taken")
        return self.last

    @property
    def over(self) -> bool:
        """Whether the last step was the last of the search."""
        return self.last is not None and self.steps >= self.last.total


def first_state(scores: Mapping[str, nn.Parameter], *, averaged: bool) -> SearchState:
    """The state before the first step; `averaged` asks for a running mean."""
    live = {name: score.detach() for name, score in scores.items()}
    return SearchState(
        scores=live,
        mean={name: score.clone() for name, score in live.items()} if averaged else {},
        shifts={name: 0.0 for name in live if not is_extra(name)},
    )


def copied(state: SearchState, device: torch.device | None = None) -> SearchState:
    """The same state in tensors of its own, on another device if one is given."""

    def own(tensors: Scores) -> dict[str, Tensor]:
        return {n: t.to(device, copy=True) for n, t in tensors.items() if isinstance(t, Tensor)}

    return SearchState(
        scores=own(state.scores),
        optimizer={name: own(kept) for name, kept in state.optimizer.items()},
        scaler=dict(state.scaler),
        mean=own(state.mean),
        shifts=dict(state.shifts),
        selected=state.selected,
        position=state.position,
        last=state.last,
    )


def draw(batches: EpochBatches, position: Position) -> Iterator[Drawn]:
    """The batches from a position on, epoch after epoch without an end."""
    skipped = position.batch
    for epoch in count(position.epoch):
        for index, batch in enumerate(islice(batches.epoch(epoch), skipped, None), skipped):
            yield Drawn(batch=batch, after=Position(epoch=epoch, batch=index + 1))
        skipped = 0


@torch.no_grad()
def follow_(mean: Scores, scores: Scores, decay: float) -> None:
    """Move a running mean towards the scores, in place."""
    for name, value in mean.items():
        value.lerp_(scores[name], 1.0 - decay)
