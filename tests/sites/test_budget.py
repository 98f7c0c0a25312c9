"""The budget: exact counts for any scores, floors, thresholds, and the shift of the soft gates."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slt_compress.errors import BudgetError
from slt_compress.sites.budget import Budget, binarize, hard_thresholds, pools, soft_shifts

exactly = settings(deadline=None, derandomize=True, max_examples=80)

# few values, so that equal scores straddle every threshold
VALUES = [-inf, -1.0, 0.0, 0.25, 0.5, 1.0, inf]
DENSITIES = st.one_of(st.floats(1e-3, 1.0), st.sampled_from([0.1, 0.29, 0.5, 0.7, 0.9, 1.0]))
SCOPES = st.sampled_from(["global", "type", "layer"])
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
        ({"density": 0.5, "scope": "row"}, "unknown scope 'row'; known: global, type, layer"),
        ({"density": 0.5, "pattern": "rows"}, "unknown pattern 'rows'; known: unstructured, N:M"),
        ({"density": 0.5, "floor": 1.01}, r"a floor of 1\.01"),
        ({"density": 0.5, "floor": float("nan")}, "a floor of nan"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**values)


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


NAMES = [f"blocks.{i}.{leaf}.weight" for i in range(3) for leaf in ("fc1", "fc2")]


def named(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [200, 100, 300, 100, 77, 20]
    return {
        name: scale**i * torch.randn(size, generator=generator)
        for i, (name, size) in enumerate(zip(NAMES, sizes, strict=True))
    }


def kept_of(masks: Mapping[str, Tensor], part: str) -> int:
    return sum(int(mask.sum()) for name, mask in masks.items() if part in name)


@exactly
@given(st.integers(0, 99), DENSITIES, FLOORS)
def test_scope_type_gives_every_type_the_target(seed: int, density: float, floor: float) -> None:
    scores = named(seed, scale=10.0)
    masks = binarize(scores, Budget(density=density, scope="type", floor=floor))
    assert masks.kept == max(1, round(density * 797))
    for leaf, size in (("fc1", 577), ("fc2", 220)):
        assert abs(kept_of(masks, leaf) - density * size) < 1.0
    if floor == 0.0 and density < 0.1:  # the greatest scores of a type win it
        assert kept_of(masks, "blocks.0.fc1") == 0


@exactly
@given(
    st.integers(0, 99), st.floats(0.2, 0.8), SCOPES, FLOORS, st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
)  # fmt: skip
def test_densities_by_name_are_met_and_the_rest_makes_up_the_total(
    seed: int, density: float, scope: str, floor: float, first: float, other: float
) -> None:
    scores = named(seed)
    densities = {"blocks.0.fc1.*": first, "re:blocks\\.[12]\\.fc2": other}
    own = {"blocks.0.fc1.weight": first, NAMES[3]: other, NAMES[5]: other}
    budget = Budget(density=density, scope=scope, floor=floor, densities=densities)
    left = density * 797 - sum(share * scores[name].numel() for name, share in own.items())
    room = 797 - sum(scores[name].numel() for name in own)
    if not 0 < left <= room:
        with pytest.raises(BudgetError, match="others; the target must be a value from"):
            binarize(scores, budget)
        return
    masks = binarize(scores, budget)
    assert masks.kept == round(density * 797)
    for name, share in own.items():
        assert abs(int(masks[name].sum()) - share * scores[name].numel()) < 1.0


def test_densities_of_all_sites_have_to_make_up_the_total() -> None:
    scores, densities = named(0), {"*.fc1.*": 0.5, "*.fc2.*": 0.25}
    total = 0.5 * 577 + 0.25 * 220
    masks = binarize(scores, Budget(density=round(total / 797, 3), densities=densities))
    assert masks.kept == round(round(total / 797, 3) * 797)
    assert abs(kept_of(masks, "fc2") - 55) <= 1
    with pytest.raises(
        BudgetError,
        match=r"keep 344 units, .* keeps 398 in all, .* are 0 others; .* must be 0\.569009",
    ):
        binarize(scores, Budget(density=0.5, densities=densities))


def test_densities_that_name_nothing_or_contradict_each_other_are_refused() -> None:
    with pytest.raises(BudgetError, match=r"the pattern '\*\.fc3\.\*' matches no site"):
        binarize(named(0), Budget(density=0.5, densities={"*.fc3.*": 0.5}))
    twice = {"*.fc1.*": 0.5, "blocks.0.*": 0.4}
    with pytest.raises(
        BudgetError, match=r"blocks\.0\.fc1\.weight matches two patterns, with 0\.5 and 0\.4"
    ):
        binarize(named(0), Budget(density=0.5, densities=twice))
    with pytest.raises(BudgetError, match=r"a density of 1\.5"):
        Budget(density=0.5, densities={"*": 1.5})


def test_densities_of_their_own_fall_with_the_whole() -> None:
    budget = Budget(density=0.2, densities={"*.0.*": 0.6})
    sizes = {"a.0.w": 100, "a.1.w": 300, "a.2.w": 100}
    assert pools(sizes, budget, 1.0) == [(["a.0.w"], 1.0), (["a.1.w", "a.2.w"], 1.0)]
    (_, own), (_, rest) = pools(sizes, budget, 0.6)
    assert own == pytest.approx(0.8)
    assert 100 * own + 400 * rest == pytest.approx(300)
    (_, own), (_, rest) = pools(sizes, budget, 0.2)
    assert (own, rest) == (0.6, pytest.approx(0.1))


def test_normalised_scores_compete_by_their_shape_and_not_their_scale() -> None:
    scores = {"a": torch.rand(500), "b": torch.rand(500) * 1e-3}
    plain = binarize(scores, Budget(density=0.3, floor=0.0))
    assert int(plain["b"].sum()) == 0
    budget = Budget(density=0.3, floor=0.0, normalise="rms")
    masks = binarize(scores, budget)
    assert masks.kept == 300
    assert abs(int(masks["a"].sum()) - 150) < 25
    scaled = {"a": scores["a"], "b": scores["b"] * 2**10}
    assert {n: m.tolist() for n, m in binarize(scaled, budget).items()} == {
        n: m.tolist() for n, m in masks.items()
    }
    thresholds = hard_thresholds(scores, budget, 0.3)
    assert all(torch.equal(scores[name] > thresholds[name], masks[name]) for name in scores)


def test_soft_shifts_of_normalised_scores_meet_the_density_with_one_scalar() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.randn(3_000, generator=generator), "b": torch.randn(2_000) * 20 + 30}
    budget = Budget(density=0.3, floor=0.0, normalise="rms", densities={})
    chance = keep_probability(0.3)
    shifts = soft_shifts(scores, budget, 0.3, chance, dict.fromkeys(scores, 0.0))
    expected = sum(float(chance(s.double() - shifts[n]).sum()) for n, s in scores.items())
    assert expected == pytest.approx(1_500, rel=1e-2)
    rms = {name: float(score.square().mean().sqrt()) for name, score in scores.items()}
    assert shifts["a"] / rms["a"] == pytest.approx(shifts["b"] / rms["b"])


def test_soft_shifts_open_a_site_of_density_one() -> None:
    budget = Budget(density=0.3, densities={"open": 1.0})
    scores = {"open": torch.zeros(50), "other": torch.linspace(0, 1, 950)}
    chance = keep_probability(0.3)
    shifts = soft_shifts(scores, budget, 0.3, chance, {"open": 0.0, "other": 0.0})
    assert shifts["open"] == -inf
    assert float(chance(scores["other"].double() - shifts["other"]).sum()) == pytest.approx(
        250, rel=1e-2
    )
