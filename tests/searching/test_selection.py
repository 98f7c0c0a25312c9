"""Selecting: the best measured scores, their running mean, and when a search may end early."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.gates import EdgePopup, Learned, Relaxed
from slt_compress.searching.selection import Selection
from slt_compress.searching.settings import Training, lr_factor, phase_at, settled
from slt_compress.sites.budget import Budget


def selection(training: Training, losses: Iterable[float]) -> tuple[Selection, Tensor]:
    """A selection over one live score that is measured with the given losses in turn."""
    score, given = torch.zeros(2), iter(losses)
    return Selection(training, {"w": score}, lambda scores: next(given)), score


def test_the_best_measured_scores_win_and_the_last_of_equals() -> None:
    found, score = selection(Training(ema=0.0), [0.5, 0.2, 0.2, 0.9])
    for value in range(4):
        score.fill_(float(value))
        found.measure()
    assert found.result()["w"].tolist() == [2.0, 2.0]


def test_without_a_measurement_the_last_scores_are_taken_as_a_copy() -> None:
    found, score = selection(Training(selections=0, ema=0.0), [])
    score.fill_(3.0)
    taken = found.result()["w"]
    score.fill_(4.0)
    assert taken.tolist() == [3.0, 3.0]


def test_the_running_mean_follows_by_its_decay() -> None:
    found, score = selection(Training(ema=0.15), [1.0])
    for value in (4.0, 8.0, 2.0):
        score.fill_(value)
        found.follow()
    found.measure()
    # decays of 1/10 and then 0.15, as 2/11 and 3/12 are above it
    mean = 0.15 * (0.15 * 0.9 * 4.0 + 0.85 * 8.0) + 0.85 * 2.0
    assert found.result()["w"].tolist() == pytest.approx([mean, mean])


def test_patience_counts_measurements_that_are_no_better() -> None:
    found, _ = selection(Training(patience=2), [0.5, 0.6, 0.4, 0.5, 0.5])
    ends = []
    for _ in range(5):
        found.measure()
        ends.append(found.exhausted)
    assert ends == [False, False, False, False, True]
    endless, _ = selection(Training(), [0.1, 0.2, 0.3])
    for _ in range(3):
        endless.measure()
    assert not endless.exhausted


def test_measurements_are_spread_over_the_last_phase() -> None:
    found, _ = selection(Training(hard=0.4, selections=4), [])
    due = [progress for progress in (p / 100 for p in range(100)) if found.due(progress)]
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
        training = settled(Training(**given), method, budget, random_init=random_init)
        return training.optimizer, training.lr, training.lr_schedule, training.hard

    relaxed, edge = Relaxed(), EdgePopup()
    assert found(relaxed, True) == ("sgd", 0.1, "cosine", 1.0)
    assert found(relaxed, True, hard=0.2) == ("sgd", 0.1, "cosine", 0.2)
    assert found(relaxed, True, optimizer="adam") == ("adam", 0.01, "linear", 0.4)
    assert found(relaxed, True, lr=0.2, lr_schedule="linear") == ("sgd", 0.2, "linear", 1.0)
    assert found(edge, True) == ("sgd", 0.1, "cosine", 0.4)
    assert found(edge, True, optimizer="adam") == ("adam", 0.03, "linear", 0.4)
    for method in (relaxed, edge):
        assert found(method, False) == ("adam", 0.02, "linear", 0.4)
        assert found(method, True, "neuron")[0] == found(method, True, "block:2x2")[0] == "adam"
        assert found(method, True, "2:4")[0] == "sgd"
        assert found(replace(method, signed=True), True)[0] == "adam"
    inside = settled(Training(), relaxed, Budget(density=0.5), random_init=True, confined=True)
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
    assert (first.hard, first.noise) == (True, False)
    assert [(phase.step, phase.seed) for phase in phases] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    "wrong", [{"ema": 1.0}, {"clip": 0.0}, {"patience": 0}, {"weight_decay": -1.0}], ids=str
)
def test_settings_that_no_search_can_follow_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        Training(**wrong)  # type: ignore[arg-type]
