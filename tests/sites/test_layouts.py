"""Layouts: N of every M by an oracle, blocks as sums and spreads, and gates on units."""

from __future__ import annotations

from itertools import product
from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slt_compress.gates import METHODS, EdgePopup, Learned, Phase, Relaxed, Sample
from slt_compress.gates.base import sample_key
from slt_compress.sites.budget import Budget, binarize_signed
from slt_compress.sites.layouts import ELEMENTWISE, Blocks, Grouped, Layout, kept_units, norms

exactly = settings(deadline=None, derandomize=True, max_examples=60)
LEARNED = [name for name, method in METHODS.items() if isinstance(method(), Learned)]

# few values, so that equal scores straddle the boundary of many groups
FEW = torch.tensor([-inf, -1.0, 0.0, 0.5, 1.0, inf])


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def grouped_scores(draw: st.DrawFn) -> tuple[Grouped, Tensor]:
    size = draw(st.sampled_from([2, 3, 4, 8]))
    layout = Grouped(
        kept=draw(st.integers(1, size - 1)), size=size, dim=draw(st.sampled_from([0, 1, 2]))
    )
    shape = [draw(st.integers(1, 3)) for _ in range(max(2, layout.dim + 1))]
    shape[layout.dim] *= size
    generator = draws(draw(st.integers(0, 999)))
    kind = draw(st.sampled_from(["few", "equal", "distinct", "neighbours"]))
    if kind == "few":
        return layout, FEW[torch.randint(len(FEW), shape, generator=generator)]
    if kind == "equal":
        return layout, torch.full(shape, 0.5)
    noise = torch.randn(shape, generator=generator)
    if kind == "neighbours":  # no number lies between them
        one = torch.tensor(1.0)
        return layout, torch.where(noise > 0, one, torch.nextafter(one, torch.tensor(2.0)))
    return layout, noise.double() if layout.kept == 1 else noise


def groups_of(values: Tensor, layout: Grouped) -> list[list[float]]:
    return values.movedim(layout.dim, -1).reshape(-1, layout.size).tolist()


@exactly
@given(grouped_scores())
def test_above_zero_are_exactly_the_highest_of_each_group_equal_ones_in_order(
    case: tuple[Grouped, Tensor],
) -> None:
    layout, scores = case
    before = scores.clone()
    centred = layout.centre(scores)
    assert centred.shape == scores.shape
    assert centred.dtype is scores.dtype
    assert centred.is_contiguous()
    assert torch.equal(scores, before)
    found = groups_of(centred > 0.0, layout)
    for scored, kept in zip(groups_of(scores, layout), found, strict=True):
        order = sorted(range(layout.size), key=lambda i: (-scored[i], i))
        assert [i for i in range(layout.size) if kept[i]] == sorted(order[: layout.kept])
    assert layout.holds(centred > 0.0, torch.zeros_like(scores, dtype=torch.bool))


def test_a_group_is_moved_to_the_middle_of_its_boundary_and_not_changed_otherwise() -> None:
    layout = Grouped(kept=2, size=4, dim=1)
    centred = layout.centre(torch.tensor([[5.0, 1.0, 2.0, 4.0, -1.0, -2.0, -3.0, -4.0]]))
    assert centred.tolist() == [[2.0, -2.0, -1.0, 1.0, 1.5, 0.5, -0.5, -1.5]]
    assert torch.equal(layout.centre(centred), centred)


def test_a_mask_with_another_number_in_a_group_does_not_hold() -> None:
    layout = Grouped(kept=2, size=4, dim=1)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    none = torch.zeros_like(mask)
    assert layout.holds(mask[:1], none[:1])
    assert not layout.holds(mask, none)
    assert not layout.holds(mask[:, :3], none[:, :3])
    unseen = none.clone()
    unseen[1, 3] = True
    assert layout.holds(mask, unseen)
    assert not layout.holds(torch.ones_like(mask), none)


@st.composite
def block_layouts(draw: st.DrawFn) -> Blocks:
    weight = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    rows = weight[0]
    columns = torch.Size(weight).numel() // rows
    block = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    return Blocks(weight=weight, matrix=(rows, columns), block=block)


@exactly
@given(block_layouts())
def test_blocks_cover_every_weight_once(layout: Blocks) -> None:
    units = torch.arange(torch.Size(layout.grid(layout.weight)).numel()).float()
    units = units.reshape(layout.grid(layout.weight))
    spread = layout.expand(units).reshape(layout.matrix)
    for row, column in product(range(layout.matrix[0]), range(layout.matrix[1])):
        unit = units[row // layout.block[0], column // layout.block[1]]
        assert spread[row, column] == unit
    values = torch.randn(layout.weight, generator=draws(1))
    sums = layout.reduce(values)
    for unit in range(units.numel()):
        assert sums.reshape(-1)[unit] == pytest.approx(
            float(values.reshape(-1)[(spread == unit).reshape(-1)].sum()), abs=1e-5
        )
    assert torch.allclose(norms(layout, values), layout.reduce(values.square()).sqrt())


@exactly
@given(block_layouts(), st.integers(0, 99))
def test_a_mask_of_whole_blocks_holds_and_one_weight_less_does_not(
    layout: Blocks, seed: int
) -> None:
    kept = torch.rand(layout.grid(layout.weight), generator=draws(seed)) < 0.5
    kept.view(-1)[0] = True
    mask = layout.expand(kept)
    none = torch.zeros_like(mask)
    assert torch.equal(kept_units(layout, mask), kept)
    assert layout.holds(mask, none)
    broken = mask.clone()
    broken.view(-1)[0] = False
    whole = int((layout.expand(torch.arange(kept.numel()).reshape(kept.shape)) == 0).sum())
    assert layout.holds(broken, none) == (whole == 1)
    assert layout.holds(broken, mask & ~broken)


LAYOUTS: dict[str, Layout] = {
    "weights": ELEMENTWISE,
    "2:4": Grouped(kept=2, size=4, dim=1),
    "1:3 along rows": Grouped(kept=1, size=3, dim=0),
    "blocks": Blocks(weight=(6, 8), matrix=(6, 8), block=(2, 3)),
    "rows": Blocks(weight=(6, 8), matrix=(6, 8), block=(1, 8)),
    "columns": Blocks(weight=(6, 8), matrix=(6, 8), block=(6, 1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("by_row", [False, True])
def test_a_permuted_mask_keeps_pattern_and_count_and_not_the_places(
    name: str, by_row: bool
) -> None:
    layout = LAYOUTS[name]
    scores = torch.randn(layout.grid((6, 8)), generator=draws(0))
    units = layout.centre(scores) > 0.0
    moved = [layout.permute(units, draws(seed), by_row=by_row) for seed in range(9)]
    for other in moved:
        assert other.shape == units.shape
        assert int(other.sum()) == int(units.sum())
        spread = layout.expand(other)
        assert layout.holds(spread, torch.zeros_like(spread))
        if by_row and name in ("weights", "2:4", "blocks"):
            assert torch.equal(other.sum(1), units.sum(1))
    assert any(not torch.equal(other, units) for other in moved)
    assert len({tuple(other.view(-1).tolist()) for other in moved}) > 4


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("layout", ["blocks", "rows", "columns"])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_on_units_is_the_gate_on_weights_with_their_gradients_summed(
    name: str, layout: str, hard: bool, signed: bool, dtype: torch.dtype
) -> None:
    method, units = METHODS[name](signed=signed), LAYOUTS[layout]
    assert isinstance(method, Learned)
    weight = torch.randn(6, 8, generator=draws(3)).to(dtype)
    upstream = torch.randn(6, 8, generator=draws(4)).to(dtype)
    phase = Phase(step=0, seed=0, hard=hard, noise=False)
    sample = Sample(phase=phase, shift=-0.1, key=sample_key(0, "w"), rescale=True, layout=units)
    scores = (0.4 * torch.randn(units.grid((6, 8)), generator=draws(5))).requires_grad_()
    spread = units.expand(scores.detach()).clone().requires_grad_()
    plain = Sample(phase=phase, shift=-0.1, key=sample.key, rescale=True)
    effective, expected = (
        method.effective(scores, weight, sample), method.effective(spread, weight, plain)
    )  # fmt: skip
    assert torch.allclose(effective, expected, rtol=1e-6 if dtype is torch.float32 else 1e-2)
    assert effective.dtype is dtype
    effective.backward(upstream)
    expected.backward(upstream)
    assert scores.grad is not None
    assert spread.grad is not None
    assert scores.grad.count_nonzero() > 0
    assert torch.allclose(scores.grad, units.reduce(spread.grad), atol=1e-5, rtol=1e-4)


def test_the_weights_of_a_unit_share_one_sample() -> None:
    units = LAYOUTS["blocks"]
    sample = Sample(
        phase=Phase(step=0, seed=0), shift=0.0, key=1, rescale=False, layout=units
    )  # fmt: skip
    gates = Relaxed().effective(torch.full(units.grid((6, 8)), 0.5), torch.ones(6, 8), sample)
    assert torch.equal(gates[0], gates[1])
    assert len(set(gates.view(-1).tolist())) > 3
    assert EdgePopup().effective(torch.ones(3, 3), torch.ones(6, 8), sample).min() == 1.0


@pytest.mark.parametrize("name", LEARNED)
def test_signed_gates_of_a_group_compete_by_their_size(name: str) -> None:
    method, layout = METHODS[name](signed=True), LAYOUTS["2:4"]
    assert isinstance(method, Learned)
    score = torch.randn(6, 8, generator=draws(6)).requires_grad_()
    size = layout.centre(score.detach().abs())
    budget = Budget(density=0.5, pattern="2:4")
    phase = Phase(step=0, seed=0, hard=True, noise=False)
    shift = method.shifts({"w": size}, budget, 0.5, phase, {"w": 0.0})["w"]
    sample = Sample(phase=phase, shift=shift, key=1, rescale=False, layout=layout)
    gates = method.effective(score, torch.ones(6, 8), sample)
    masks = binarize_signed({"w": score.detach()}, budget, {"w": layout})
    assert torch.equal(gates != 0, masks["w"])
    assert torch.equal(gates < 0, masks.flips["w"])
    assert layout.holds(masks["w"], torch.zeros(6, 8, dtype=torch.bool))
    gates.sum().backward()
    assert score.grad is not None
    assert score.grad.count_nonzero() > 0


def test_a_signed_unit_is_flipped_as_a_whole() -> None:
    layout = LAYOUTS["blocks"]
    scores = {"w": torch.tensor([[1.0, -2.0, 0.1], [-0.2, 0.3, -3.0], [0.0, 4.0, -0.5]])}
    masks = binarize_signed(scores, Budget(density=5 / 9, pattern="block:2x3"), {"w": layout})
    assert kept_units(layout, masks["w"]).tolist() == [
        [True, True, False], [False, False, True], [False, True, True],
    ]  # fmt: skip
    assert kept_units(layout, masks.flips["w"]).tolist() == [
        [False, True, False], [False, False, True], [False, False, True],
    ]  # fmt: skip
    none = torch.zeros(6, 8, dtype=torch.bool)
    assert layout.holds(masks["w"], none)
    assert layout.holds(masks.flips["w"], none)
