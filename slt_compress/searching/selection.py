"""Selecting: which of the scores that a search went through its masks are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slt_compress.searching.settings import Training

Scores = dict[str, Tensor]


class Selection:
    """The scores, or their running mean, that did best on the held-out slice.

    They are measured at a few points of the last phase and at the end, which wins a tie. Without
    measurements the last ones are taken.
    """

    def __init__(
        self,
        training: Training,
        scores: Mapping[str, Tensor],
        held_out_loss: Callable[[Mapping[str, Tensor]], float],
    ) -> None:
        self._training = training
        self._live = scores
        self._loss = held_out_loss
        self._due = selection_points(training)
        averaged = scores if training.ema > 0.0 else {}
        self._mean = {name: score.detach().clone() for name, score in averaged.items()}
        self._best: tuple[float, Scores] | None = None
        self._worse = self._steps = 0

    @property
    def exhausted(self) -> bool:
        """Whether `patience` measurements in a row were no better than the best one before."""
        patience = self._training.patience
        return patience is not None and self._worse >= patience

    @torch.no_grad()
    def follow(self) -> None:
        """Let the running mean follow the scores by one step, in the first ones faster."""
        decay = min(self._training.ema, (1.0 + self._steps) / (10.0 + self._steps))
        self._steps += 1
        for name, mean in self._mean.items():
            mean.lerp_(self._live[name].detach(), 1.0 - decay)

    def due(self, progress: float) -> bool:
        """Whether a measurement is due where `progress` of the search is over."""
        if not self._due or progress < self._due[0]:
            return False
        self._due = self._due[1:]
        return True

    def measure(self) -> float:
        """Measure the scores as they are now, and keep them if they are the best so far."""
        scores = self._now()
        loss = self._loss(scores)
        better = self._best is None or loss <= self._best[0]
        self._worse = 0 if better else self._worse + 1
        if better:
            self._best = (loss, scores)
        return loss

    def result(self) -> Scores:
        """The chosen scores, on the CPU."""
        return self._now() if self._best is None else self._best[1]

    def _now(self) -> Scores:
        source = self._mean or self._live
        return {name: score.detach().cpu().clone() for name, score in source.items()}


def selection_points(training: Training) -> list[float]:
    """Progress after which a mask is measured, evenly over the last phase; the end is implied."""
    count = training.selections
    return [1.0 - training.rounded * (count - i) / count for i in range(1, count)]
