"""The budget: exact counts for any scores, floors, thresholds, and the shift of the soft gates."""

from __future__ import annotations

from math import inf, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slt_compress.budget import Budget, binarize, cubic_density, hard_thresholds, soft_shifts
from slt_compress.errors import BudgetError

exactly = settings(deadline=None, derandomize=True, max_examples=80)

# few values, so that equal scores straddle every threshold
VALUES = [-inf, -1.0, 0.0, 0.25, 0.5, 1.0, inf]
DENSITIES = st.one_of(st.floats(1e-3, 1.0), st.sampled_from([0.1, 0.29, 0.5, 0.7, 0.9, 1.0]))
SCOPES = st.sampled_from(["global", "layer"])
FLOORS = st.sampled_from([0.0, 0.1, 0.5, 1.0])


@st.composite
def score_sets(draw: st.DrawFn) -> dict[str, Tensor]:
    sizes = draw(st.lists(st.sampled_from([1, 1, 2, 3, 17, 60]), min_size=1, max_size=8))
    kind = draw(st.sampled_from(["distinct", "equal", "few"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scores = {}
    for index, size in enumerate(sizes):
        shape = (size // 3, 3) if size % 3 == 0 else (size, 1)
        scale = 10.0 ** draw(st.integers(-2, 2))
        noise = torch.randn(shape, generator=generator) * scale
        if kind == "equal":
            noise = torch.full(shape, 0.5)
        elif kind == "few":
            picks = torch.randint(len(VALUES), shape, generator=generator)
            noise = torch.tensor(VALUES)[picks]
        scores[f"site{index}"] = noise
    return scores


@exactly
@given(score_sets(), DENSITIES, SCOPES, FLOORS)
def test_the_count_is_exact_for_any_scores(
    scores: dict[str, Tensor], density: float, scope: str, floor: float
) -> None:
    budget = Budget(density=density, scope=scope, floor=floor)
    masks = binarize(scores, budget)
    assert masks.kept == max(1, round(density * masks.total))
    assert list(masks) == list(scores)
    assert {n: m.shape for n, m in masks.items()} == {n: s.shape for n, s in scores.items()}


@exactly
@given(score_sets(), DENSITIES, SCOPES, FLOORS)
def test_within_a_site_the_highest_scores_are_kept_and_equal_ones_in_order(
    scores: dict[str, Tensor], density: float, scope: str, floor: float
) -> None:
    budget = Budget(density=density, scope=scope, floor=floor)
    for name, mask in binarize(scores, budget).items():
        order = sorted(range(mask.numel()), key=lambda i: (-float(scores[name].view(-1)[i]), i))
        expected = set(order[: int(mask.sum())])
        assert set(mask.view(-1).nonzero().view(-1).tolist()) == expected


@exactly
@given(score_sets(), DENSITIES)
def test_scope_layer_keeps_the_same_share_of_every_site(
    scores: dict[str, Tensor], density: float
) -> None:
    for name, mask in binarize(scores, Budget(density=density, scope="layer")).items():
        share = density * scores[name].numel()
        assert share - 1 < int(mask.sum()) < share + 1 or int(mask.sum()) == round(share)


@exactly
@given(score_sets(), DENSITIES, FLOORS)
def test_no_site_is_left_below_its_floor(
    scores: dict[str, Tensor], density: float, floor: float
) -> None:
    budget = Budget(density=density, floor=floor)
    for name, mask in binarize(scores, budget).items():
        assert int(mask.sum()) > floor * density * scores[name].numel() - 1.0


def test_without_floor_the_ranking_is_global() -> None:
    scores = {"low": torch.arange(10.0), "high": torch.arange(10.0) + 100}
    masks = binarize(scores, Budget(density=0.5, floor=0.0))
    assert int(masks["low"].sum()) == 0
    assert bool(masks["high"].all())


def test_with_a_floor_a_low_site_keeps_exactly_its_floor() -> None:
    scores = {"low": torch.arange(100.0), "high": torch.arange(100.0) + 1_000}
    masks = binarize(scores, Budget(density=0.5, floor=0.2))
    assert int(masks["low"].sum()) == 10
    assert masks["low"][90:].all()
    assert int(masks["high"].sum()) == 90


def test_every_site_keeps_a_weight_where_the_budget_has_enough() -> None:
    scores = {f"tiny{i}": torch.tensor([-5.0]) for i in range(5)} | {"big": torch.rand(1_000)}
    masks = binarize(scores, Budget(density=0.05))
    assert all(bool(mask.any()) for mask in masks.values())


def test_a_floor_of_the_whole_budget_leaves_room_for_many_tiny_sites() -> None:
    ranks = torch.arange(100.0) / 1_000
    wide = torch.cat([torch.full((49,), 10.0), torch.zeros(51)]) + ranks
    tiny = {f"tiny{i}": torch.tensor([20.0 - i if i < 27 else -5.0 - i]) for i in range(50)}
    masks = binarize({"a": wide, "b": wide.flip(0), **tiny}, Budget(density=0.5, floor=1.0))
    assert masks.kept == 125
    assert int(masks["a"].sum()) >= 50
    assert int(masks["b"].sum()) >= 50


def test_a_group_that_is_full_takes_no_rounding_up() -> None:
    scores = {"a": torch.tensor([5.0, 6.0]), "b": torch.tensor([7.0]), "c": torch.arange(9) / 9}
    masks = binarize(scores, Budget(density=0.625773547475314, floor=0.9))
    assert masks.kept == 8


def test_floors_hold_where_all_scores_are_equal() -> None:
    scores = {name: torch.zeros(100) for name in ("first", "second", "third")}
    masks = binarize(scores, Budget(density=0.2, floor=0.5))
    assert {int(mask.sum()) >= 10 for mask in masks.values()} == {True}
    assert masks.kept == 60


def test_equal_scores_are_kept_in_row_major_order_every_time() -> None:
    scores = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    budget = Budget(density=0.7, floor=0.0)
    masks = binarize(scores, budget)
    assert masks["a"].tolist() == [[True, True, True], [True, True, True]]
    assert masks["b"].tolist() == [True, False, False, False]
    again = binarize({name: score.clone() for name, score in scores.items()}, budget)
    assert {n: m.tolist() for n, m in again.items()} == {n: m.tolist() for n, m in masks.items()}


def test_nan_scores_are_refused() -> None:
    with pytest.raises(BudgetError, match="the scores of b hold NaN"):
        binarize({"a": torch.zeros(2), "b": torch.tensor([0.0, torch.nan])}, Budget(density=0.5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"density": 0.0}, r"a density of 0\.0 is outside \(0, 1\]"),
        ({"density": 1.5}, "sparsity of -0.5"),
        ({"density": float("nan")}, "density of nan"),
        ({"density": 0.5, "scope": "row"}, "unknown scope 'row'; known: global, layer"),
        ({"density": 0.5, "pattern": "5:3"}, "unknown pattern '5:3'; known: unstructured"),
        ({"density": 0.5, "floor": 1.01}, r"a floor of 1\.01"),
        ({"density": 0.5, "floor": float("nan")}, "a floor of nan"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**values)


def test_the_cubic_schedule_starts_and_ends_where_it_should() -> None:
    densities = [cubic_density(i / 100, start=1.0, target=0.1, ramp=0.5) for i in range(101)]
    assert densities[0] == 1.0
    assert densities[25] == pytest.approx(0.1 + 0.9 * 0.5**3)
    assert densities[50:] == [0.1] * 51
    assert densities == sorted(densities, reverse=True)
    assert cubic_density(0.0, start=1.0, target=0.1, ramp=0.0) == 0.1


@exactly
@given(score_sets(), st.floats(0.02, 0.98), SCOPES, FLOORS)
def test_hard_thresholds_keep_the_count_where_scores_differ(
    scores: dict[str, Tensor], density: float, scope: str, floor: float
) -> None:
    total = sum(score.numel() for score in scores.values())
    order = torch.randperm(total, generator=torch.Generator().manual_seed(total)).float()
    pieces = order.split([score.numel() for score in scores.values()])
    distinct = dict(zip(scores, pieces, strict=True))
    budget = Budget(density=density, scope=scope, floor=floor)
    thresholds = hard_thresholds(distinct, budget, density)
    masks = binarize(distinct, budget)
    for name, score in distinct.items():
        assert torch.equal(score > thresholds[name], masks[name])


def keep_probability(width: float) -> object:
    return lambda x: 0.5 * (1 + torch.erf((x - 0.5) / (sqrt(2) * width)))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.lists(st.sampled_from([1, 5, 300, 5_000]), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    SCOPES,
    st.sampled_from([0.1, 0.5]),
    st.sampled_from([0.0, -3.0, 40.0, inf, -inf]),
    st.floats(0.01, 1.0),
)
def test_soft_shifts_meet_the_density(
    sizes: list[int], density: float, scope: str, width: float, start: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    scores = {
        str(i): 0.5 + i + spread * torch.randn(size, generator=generator)
        for i, size in enumerate(sizes)
    }
    budget = Budget(density=0.5, scope=scope, floor=0.1)
    chance = keep_probability(width)
    shifts = soft_shifts(scores, budget, density, chance, dict.fromkeys(scores, start))
    expected = {n: float(chance(s.double() - shifts[n]).sum()) for n, s in scores.items()}
    if scope == "layer":
        for name, score in scores.items():
            assert expected[name] == pytest.approx(density * score.numel(), rel=1e-2)
    total = sum(sizes)
    assert sum(expected.values()) == pytest.approx(density * total, rel=1e-2)
    for name, score in scores.items():
        assert expected[name] >= 0.1 * density * score.numel() * (1 - 1e-2)


def test_a_wide_gate_meets_the_density_closely() -> None:
    scores = {"w": torch.randn(50_000, generator=torch.Generator().manual_seed(0))}
    chance = keep_probability(0.5)
    shift = soft_shifts(scores, Budget(density=0.3), 0.3, chance, {"w": 0.0})["w"]
    assert float(chance(scores["w"].double() - shift).mean()) == pytest.approx(0.3, rel=2e-4)


def test_soft_shifts_share_one_scalar_unless_a_floor_holds() -> None:
    scores = {"a": torch.linspace(0, 1, 500), "b": torch.linspace(0.2, 1, 500)}
    chance = keep_probability(0.3)
    shifts = soft_shifts(scores, Budget(density=0.3), 0.3, chance, {"a": 0.0, "b": 0.0})
    assert shifts["a"] == shifts["b"]
    far = {"a": scores["a"] - 50, "b": scores["b"]}
    shifts = soft_shifts(far, Budget(density=0.3), 0.3, chance, {"a": 0.0, "b": 0.0})
    assert shifts["a"] < shifts["b"] - 40


def test_at_density_one_every_gate_is_open() -> None:
    chance = keep_probability(0.3)
    found = soft_shifts({"a": torch.zeros(3)}, Budget(density=0.5), 1.0, chance, {"a": 0.0})
    assert found == {"a": -inf}
