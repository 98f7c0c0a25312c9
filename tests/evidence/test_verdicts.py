"""The verdict: which metric, how sure, and when it is no better than guessing."""

from __future__ import annotations

import pytest

from slt_compress.evidence.verdicts import is_chance, verdict_of, wilson

HEADLINES = [
    ({"accuracy": 0.9, "loss": 0.3, "agreement": 0.8}, "accuracy", "90.00 %"),
    ({"loss": 3.0, "perplexity": 20.1}, "perplexity", "20.1"),
    ({"map": 0.5, "f1": 0.4, "loss": 1.0}, "map", "50.00 %"),
    ({"kl": 0.2, "agreement": 0.8}, "agreement", "80.00 %"),
    ({"loss": 1.25}, "loss", "1.25"),
]


@pytest.mark.parametrize(("metrics", "name", "shown"), HEADLINES)
def test_the_metric_that_tells_most(metrics: dict[str, float], name: str, shown: str) -> None:
    verdict = verdict_of({"hard": metrics, "dense": None}, {}, examples=None, task=None)
    assert verdict is not None
    assert verdict.metric == name
    assert verdict.shown(verdict.hard) == shown
    assert f"{name} {shown} masked" == verdict.sentence()


def test_nothing_measured_has_no_verdict() -> None:
    assert verdict_of({}, {}, examples=10, task="image-classification") is None
    assert verdict_of({"hard": None}, {}, examples=10, task=None) is None


@pytest.mark.parametrize(("share", "examples", "low", "high"), [
    (0.5, 10, 0.2366, 0.7634), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0),
    (0.81, 100, 0.7222, 0.8749), (0.9735, 10_000, 0.9702, 0.9765),
])  # fmt: skip
def test_wilsons_interval(share: float, examples: int, low: float, high: float) -> None:
    """Against the closed form of the score interval, computed elsewhere to four digits."""
    assert wilson(share, examples) == pytest.approx((low, high), abs=1e-4)


def test_an_interval_only_where_each_example_is_one_answer() -> None:
    metrics = {"hard": {"accuracy": 0.9}, "dense": {"accuracy": 0.95}}
    sure = verdict_of(metrics, {}, examples=100, task="image-classification")
    words = verdict_of(metrics, {}, examples=100, task="token-classification")
    assert sure is not None
    assert words is not None
    assert sure.low is not None
    assert words.low is None
    assert sure.sentence() == (
        "accuracy 95.00 % dense → 90.00 % masked (95 % interval 82.6 to 94.5 %, 100 examples)"
    )
    assert words.sentence() == "accuracy 95.00 % dense → 90.00 % masked (100 examples)"


@pytest.mark.parametrize(("accuracy", "classes", "examples", "guessing"), [
    (0.1, 10, 1000, True), (0.11, 10, 1000, True), (0.14, 10, 1000, False), (0.05, 10, 1000, True),
    (0.6, 2, 20, True), (0.6, 2, 2000, False), (1.0, 1, 10, False),
])  # fmt: skip
def test_guessing(accuracy: float, classes: int, examples: int, guessing: bool) -> None:
    assert is_chance(accuracy, classes, examples) is guessing
