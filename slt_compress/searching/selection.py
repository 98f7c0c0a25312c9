"""Selection: from which of the scores seen during a search the mask is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from slt_compress.gates.base import HARD
from slt_compress.searching.half_states import lags_of
from slt_compress.searching.settings import Training
from slt_compress.searching.state import SearchState, Selected
from slt_compress.storage.aside import set_aside


def candidate(state: SearchState) -> dict[str, Tensor]:
    """What a mask would be made from now, on the CPU: the running mean, or the scores.

    Where these are on the CPU they are the tensors themselves, which the next step changes.
    """
    source = state.mean or state.scores
    lags = dict(lags_of(state.optimizer))
    if lags:
        return {name: (score.detach() - lags[name]).cpu() for name, score in source.items()}
    return {name: score.detach().cpu() for name, score in source.items()}


def chosen(state: SearchState) -> Mapping[str, Tensor]:
    """The scores with the lowest held-out loss; without a measurement, the present ones."""
    best = state.selected.scores
    return set_aside(candidate(state), None) if best is None else best


def final(state: SearchState) -> SearchState:
    """The state after the last step: the chosen scores, without what only steps need."""
    return replace(
        state, scores=chosen(state), optimizer={}, mean={},
        selected=replace(state.selected, scores=None),
    )  # fmt: skip


def weighed(selected: Selected, scores: Mapping[str, Tensor], loss: float) -> Selected:
    """The selection after one more measurement; of equal losses the later one wins."""
    if selected.scores is None or loss <= selected.loss:
        return replace(selected, scores=scores, loss=loss, worse=0)
    return replace(selected, worse=selected.worse + 1)


def is_due(training: Training, selected: Selected, progress: float) -> bool:
    """Whether the next measurement is due when `progress` of the search is over."""
    points = selection_points(training)
    return selected.points < len(points) and progress >= points[selected.points]


def is_exhausted(training: Training, selected: Selected) -> bool:
    """Whether `patience` measurements in a row were no better than the best one before."""
    return training.patience is not None and selected.worse >= training.patience


def selection_points(training: Training) -> list[float]:
    """Progress after which a mask is measured, evenly over the last phase; the end is implied."""
    count, share = training.selections, training.rounded or HARD
    return [1.0 - share * (count - i) / count for i in range(1, count)]


def mean_decay(ema: float, steps: int) -> float:
    """Decay of the running mean after `steps` steps: smaller in the first ones."""
    return min(ema, (1.0 + steps) / (10.0 + steps))
