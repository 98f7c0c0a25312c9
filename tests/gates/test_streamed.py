"""Streamed scores of magnitude: the masks of the scores themselves, without them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slt_compress.errors import BudgetError
from slt_compress.gates import Magnitude
from slt_compress.gates.streamed import MagnitudeScores
from slt_compress.sites.budget import Budget, binarize

KEYS = {"a": 1, "b": 2, "c": 3}


def weights_of(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (300, 70), "b": (1100, 1000), "c": (5, 3)}
    weights = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    if kind == "bf16":
        return {name: weight.bfloat16() for name, weight in weights.items()}
    if kind == "fp64":
        return {name: weight.double() for name, weight in weights.items()}
    if kind == "equal":
        return {name: weight.sign() * 0.05 for name, weight in weights.items()}
    if kind == "zeros":
        return {name: weight * (weight > 1.0) for name, weight in weights.items()}
    return weights


@pytest.mark.parametrize("kind", ["fp32", "fp64", "bf16", "equal", "zeros"])
@pytest.mark.parametrize(
    "budget",
    [
        Budget(density=0.3),
        Budget(density=0.05, floor=0.0),
        Budget(density=0.5, scope="layer"),
        Budget(density=0.4, normalise="rms"),
    ],
    ids=["global", "no floor", "layer", "rms"],
)
def test_masks_are_those_of_the_scores(kind: str, budget: Budget) -> None:
    weights = weights_of(kind)
    scores = {name: Magnitude().score(weight, KEYS[name]) for name, weight in weights.items()}
    expected = binarize(scores, budget)
    masks = binarize(MagnitudeScores(weights=weights, keys=KEYS), budget)
    assert list(masks) == list(expected)
    assert all(torch.equal(masks[name], expected[name]) for name in masks)


def test_a_look_up_makes_the_score() -> None:
    weights = weights_of("bf16")
    scores = MagnitudeScores(weights=weights, keys=KEYS)
    assert torch.equal(scores["a"], Magnitude().score(weights["a"], 1))
    assert list(scores) == ["a", "b", "c"]


def test_weights_that_are_not_numbers_are_refused() -> None:
    weights = weights_of("fp32")
    weights["c"][0, 0] = torch.nan
    with pytest.raises(BudgetError, match="the scores of c hold NaN"):
        binarize(MagnitudeScores(weights=weights, keys=KEYS), Budget(density=0.5))
