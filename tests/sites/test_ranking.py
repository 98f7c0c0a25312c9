"""Ranking: the same order statistics, counts and masks as a sort of all scores together."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slt_compress.sites.budget import Budget, binarize, hard_thresholds
from slt_compress.sites.keys import DeviceKeys, HostKeys, keys_of
from slt_compress.sites.ranking import Ranking

exactly = settings(deadline=None, derandomize=True, max_examples=60)
KINDS = ("normal", "ties", "constant", "infinite", "sampled", "tail")


def scores_of(kind: str, sizes: list[int], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for index, size in enumerate(sizes):
        score = torch.randn(size, generator=generator) * 10.0 ** (index % 3) + index % 2
        if kind == "ties":
            score = score.round()
        elif kind == "constant":
            score.fill_(0.5)
        elif kind == "infinite":
            score[score > 0.7] = inf
            score[score < -0.7] = -inf
        elif kind == "sampled":  # what the sample sees has nothing to do with the rest
            score[::61] = 1000.0
        elif kind == "tail":
            score = score.abs().pow(9)
        found[str(index)] = score.to(dtype)
    return found


def sorted_top(scores: dict[str, Tensor], kept: int) -> tuple[float, dict[str, Tensor]]:
    """The oracle: the threshold by kthvalue, the mask by a stable sort."""
    flat = torch.cat([score.reshape(-1) for score in scores.values()])
    rank = flat.numel() - kept
    value = -inf if rank <= 0 else float(flat.kthvalue(rank).values)
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[flat.sort(descending=True, stable=True).indices[:kept]] = True
    parts = mask.split([score.numel() for score in scores.values()])
    return value, dict(zip(scores, parts, strict=True))


@exactly
@given(
    st.sampled_from(KINDS),
    st.lists(st.sampled_from([1, 2, 61, 62, 900, 9_000, 70_000]), min_size=1, max_size=5),
    st.one_of(st.sampled_from([0.0, 1e-4, 0.5, 1.0]), st.floats(0.0, 1.0)),
    st.integers(0, 999),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_values_counts_and_masks_are_those_of_a_sort(
    kind: str, sizes: list[int], share: float, seed: int, dtype: torch.dtype
) -> None:
    scores = scores_of(kind, sizes, seed, dtype)
    kept = round(share * sum(sizes))
    value, expected = sorted_top(scores, kept)
    ranking, names = Ranking(keys_of(scores)), list(scores)
    assert ranking.value(names, kept) == value
    assert ranking.counts(names, kept) == {n: int(m.sum()) for n, m in expected.items()}
    masks = dict(ranking.masks(names, kept))
    assert all(torch.equal(masks[name], expected[name]) for name in names)


@exactly
@given(st.sampled_from(KINDS), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=4))
def test_one_ranking_answers_about_any_sites_in_any_order(kind: str, shares: list[float]) -> None:
    scores = scores_of(kind, [9_000, 20_000, 300], 1, torch.float32)
    ranking = Ranking(keys_of(scores))
    for turn, share in enumerate(shares):
        some = {name: scores[name] for name in list(scores)[turn % 2 :]}
        kept = round(share * sum(score.numel() for score in some.values()))
        value, expected = sorted_top(some, kept)
        assert ranking.value(list(some), kept) == value
        assert ranking.counts(list(some), kept) == {n: int(m.sum()) for n, m in expected.items()}


@exactly
@given(st.sampled_from(KINDS), st.floats(0.0, 1.0), st.integers(0, 99))
def test_scores_of_a_device_are_ranked_alike(kind: str, share: float, seed: int) -> None:
    scores = scores_of(kind, [9_000, 500], seed, torch.float32)
    kept, names = round(share * 9_500), list(scores)
    here, there = Ranking(keys_of(scores)), Ranking(DeviceKeys(scores))
    assert there.value(names, kept) == here.value(names, kept)
    masks = dict(here.masks(names, kept))
    assert all(torch.equal(mask, masks[name]) for name, mask in there.masks(names, kept))


@exactly
@given(st.integers(0, 99), st.floats(0.01, 0.99))
def test_equal_keys_are_told_apart_by_their_scores(seed: int, share: float) -> None:
    scores = scores_of("normal", [9_000, 4_000, 61], seed, torch.float64)
    # the last twelve bits of the score are missing in the key
    keys = {name: score.mul(16).round().div(16) for name, score in scores.items()}
    fine = {n: keys[n] + (scores[n] - scores[n].mean()) * 1e-9 for n in scores}
    ranking = Ranking(HostKeys(keys, lambda part: part, lambda n, at: fine[n].numpy()[at]))
    kept, names = round(share * 13_061), list(scores)
    _, expected = sorted_top(fine, kept)
    assert ranking.counts(names, kept) == {n: int(m.sum()) for n, m in expected.items()}
    masks = dict(ranking.masks(names, kept))
    assert all(torch.equal(masks[name], expected[name]) for name in names)


def test_a_bracket_costs_one_pass_and_a_question_nearby_none() -> None:
    passes = []

    class Counted(HostKeys):
        def between(self, name: str, low: float, high: float) -> tuple[int, np.ndarray]:
            passes.append(name)
            return super().between(name, low, high)

    scores = scores_of("normal", [200_000, 100_000], 0, torch.float32)
    ranking, names = Ranking(Counted(scores, lambda part: part)), list(scores)
    ranking.value(names, 30_000)
    assert passes == names
    ranking.counts(names, 30_001)
    assert passes == names


@pytest.mark.parametrize("size", [50, 50_000])
def test_scores_that_are_not_numbers_end_above_all_others(size: int) -> None:
    scores = {"a": torch.arange(float(size)), "b": torch.full((size,), nan)}
    ranking = Ranking(keys_of(scores))
    assert np.isnan(ranking.value(["a", "b"], size // 2))
    assert ranking.value(["a", "b"], size + 9) == size - 10


@exactly
@given(
    st.sampled_from(KINDS),
    st.floats(0.02, 0.98),
    st.sampled_from(["global", "type", "layer"]),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.sampled_from(["none", "rms"]),
)
def test_thresholds_and_masks_of_large_sites_agree(
    kind: str, density: float, scope: str, floor: float, normalise: str
) -> None:
    scores = scores_of(kind, [30_000, 9_000, 200], 3, torch.float32)
    if kind != "infinite":
        scores["0"] -= 40.0  # falls to its floor
    budget = Budget(density=density, scope=scope, floor=floor, normalise=normalise)
    masks, thresholds = binarize(scores, budget), hard_thresholds(scores, budget, density)
    for name, score in scores.items():
        above = score > thresholds[name]
        assert not bool((above & ~masks[name]).any())
        assert bool((score[masks[name] & ~above] == thresholds[name]).all())
