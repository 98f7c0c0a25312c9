"""Selecting: the best measured scores, their running mean, and when a search may end early."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from slt_compress.errors import RecipeError
from slt_compress.gates import EdgePopup, Learned, Relaxed
from slt_compress.searching.selection import (
    candidate,
    chosen,
    is_due,
    is_exhausted,
    mean_decay,
    weighed,
)
from slt_compress.searching.settings import Training, lr_factor, phase_at, with_defaults
from slt_compress.searching.state import SearchState, Selected, follow_
from slt_compress.sites.budget import Budget


def state(*values: float, mean: tuple[float, ...] = ()) -> SearchState:
    """A state of one site with the given scores and, where there is one, their running mean."""
    return SearchState(
        scores={"w": torch.tensor(values)},
        mean={"w": torch.tensor(mean)} if mean else {},
        shifts={"w": 0.0},
    )


def weighed_all(losses: Iterable[float]) -> list[Selected]:
    """The selection after each of some measurements of scores 0, 1, 2, …"""
    steps = [Selected()]
    for value, loss in enumerate(losses):
        steps.append(weighed(steps[-1], {"w": torch.tensor([float(value)])}, loss))
    return steps[1:]


def test_the_best_measured_scores_win_and_the_last_of_equals() -> None:
    last = weighed_all([0.5, 0.2, 0.2, 0.9])[-1]
    scores = chosen(replace(state(7.0), selected=last))
    assert (scores["w"].tolist(), last.loss) == ([2.0], 0.2)


def test_without_a_measurement_the_present_scores_are_taken_as_a_copy() -> None:
    present = state(3.0, 3.0)
    taken = chosen(present)
    present.scores["w"].fill_(4.0)
    assert taken["w"].tolist() == [3.0, 3.0]
    assert candidate(state(1.0, mean=(2.0,)))["w"].tolist() == [2.0]


def test_the_running_mean_follows_by_its_decay() -> None:
    mean = {"w": torch.zeros(2)}
    for steps, value in enumerate((4.0, 8.0, 2.0)):
        follow_(mean, {"w": torch.full((2,), value)}, mean_decay(0.15, steps))
    # decays of 1/10 and then 0.15, as 2/11 and 3/12 are above it
    expected = 0.15 * (0.15 * 0.9 * 4.0 + 0.85 * 8.0) + 0.85 * 2.0
    assert mean["w"].tolist() == pytest.approx([expected, expected])


def test_patience_counts_measurements_that_are_no_better() -> None:
    steps = weighed_all([0.5, 0.6, 0.4, 0.5, 0.5])
    ends = [is_exhausted(Training(patience=2), step) for step in steps]
    assert ends == [False, False, False, False, True]
    assert not any(is_exhausted(Training(), step) for step in steps)


def test_measurements_are_spread_over_the_last_phase() -> None:
    training, selected = Training(hard=0.4, selections=4), Selected()
    due = []
    for progress in (p / 100 for p in range(100)):
        if is_due(training, selected, progress):
            due.append(progress)
            selected = replace(selected, points=selected.points + 1)
    assert due == [0.7, 0.8, 0.9]


def test_the_learning_rate_falls_as_its_schedule_says() -> None:
    linear, cosine = Training(decay=0.5), Training(lr_schedule="cosine")
    assert [lr_factor(linear, p) for p in (0.0, 0.5, 0.75, 1.0)] == [1.0, 1.0, 0.5, 0.0]
    assert [lr_factor(cosine, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_settings_that_are_not_given_suit_the_method_and_the_start() -> None:
    def found(
        method: Learned, random_init: bool, pattern: str = "unstructured", **given: Any
    ) -> tuple[Any, ...]:
        budget = Budget(density=0.5, pattern=pattern)
        training = with_defaults(Training(**given), method, budget, random_init=random_init)
        return training.optimizer, training.lr, training.lr_schedule, training.hard

    relaxed, edge = Relaxed(), EdgePopup()
    assert found(relaxed, True) == ("sgd", 0.1, "cosine", 0.0)
    assert found(relaxed, True, hard=0.2) == ("sgd", 0.1, "cosine", 0.2)
    assert found(relaxed, True, optimizer="adam") == ("adam", 0.01, "linear", 0.4)
    assert found(relaxed, True, lr=0.2, lr_schedule="linear") == ("sgd", 0.2, "linear", 0.0)
    assert found(edge, True) == ("sgd", 0.1, "cosine", 0.4)
    assert found(edge, True, optimizer="adam") == ("adam", 0.03, "linear", 0.4)
    for method in (relaxed, edge):
        assert found(method, False) == ("adam", 0.02, "linear", 0.4)
        assert found(method, True, "neuron")[0] == found(method, True, "block:2x2")[0] == "adam"
        assert found(method, True, "2:4")[0] == "sgd"
        assert found(replace(method, signed=True), True)[0] == "adam"
    inside = with_defaults(Training(), relaxed, Budget(density=0.5), random_init=True, inside=True)
    assert (inside.optimizer, inside.lr, inside.hard) == ("adam", 0.01, 0.4)
    assert found(Relaxed(penalty=0.1), True) == ("adam", 0.01, "linear", 0.4)
    with pytest.raises(RecipeError, match=r"optimizer=sgd needs training\.lr"):
        found(relaxed, False, optimizer="sgd")
    assert found(relaxed, False, optimizer="sgd", lr=7.0)[:3] == ("sgd", 7.0, "cosine")


def test_a_phase_is_soft_then_annealed_then_hard() -> None:
    training = Training(anneal=0.4, hard=0.2, seed=3)
    phases = [phase_at(training, p, index) for index, p in enumerate((0.0, 0.8, 0.9))]
    assert [phase.annealed for phase in phases] == pytest.approx([0.0, 0.5, 0.75])
    assert [phase.hard for phase in phases] == [False, True, True]
    assert all(phase.noise for phase in phases)
    first = phase_at(Training(hard=1.0), 0.0, 0)
    assert (first.hard, first.noise, first.narrowed) == (True, False, None)
    never = phase_at(Training(hard=0.0), 0.25, 0)
    assert (never.hard, never.narrowed) == (False, 0.25)
    assert [(phase.step, phase.seed) for phase in phases] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    "wrong", [{"ema": 1.0}, {"clip": 0.0}, {"patience": 0}, {"weight_decay": -1.0}], ids=str
)
def test_settings_that_no_search_can_follow_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Training(**wrong)  # type: ignore[arg-type]
