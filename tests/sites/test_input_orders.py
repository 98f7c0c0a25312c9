"""Orders of inputs: found by what they keep, checked before they are believed, and obeyed."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slt_compress.sites.input_orders import as_order, input_order
from slt_compress.sites.layouts import Grouped

exactly = settings(deadline=None, derandomize=True, max_examples=40)


def held(losses: Tensor, order: tuple[int, ...], kept: int, size: int) -> float:
    groups = losses[:, torch.tensor(order)].view(len(losses), -1, size)
    return float(groups.topk(kept, 2)[0].sum())


@exactly
@given(
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8)]),
    rows=st.integers(1, 9),
    groups=st.integers(1, 6),
    seed=st.integers(0, 999),
)
def test_an_order_has_every_input_once_and_keeps_no_less(
    pattern: tuple[int, int], rows: int, groups: int, seed: int
) -> None:
    kept, size = pattern
    losses = torch.rand(rows, groups * size, generator=torch.Generator().manual_seed(seed)) ** 4
    order = input_order(losses, kept, size)
    own = tuple(range(groups * size))
    assert as_order(list(order)) == order
    assert held(losses, order, kept, size) >= held(losses, own, kept, size)
    assert order == input_order(losses.clone(), kept, size)


@pytest.mark.parametrize("seed", range(4))
def test_an_order_comes_close_to_the_best_of_all(seed: int) -> None:
    losses = torch.rand(5, 8, generator=torch.Generator().manual_seed(seed)) ** 3
    best = max(
        held(losses, order, 2, 4)
        for order in permutations(range(8))
        if order[0] == 0 and list(order[:4]) == sorted(order[:4]) < sorted(order[4:])
    )
    own, found = held(losses, tuple(range(8)), 2, 4), input_order(losses, 2, 4)
    assert held(losses, found, 2, 4) - own >= 0.7 * (best - own)


def test_strong_inputs_side_by_side_are_spread_over_the_groups() -> None:
    losses = torch.full((3, 16), 0.01)
    losses[:, :8] = 1.0
    assert held(losses, tuple(range(16)), 2, 4) == pytest.approx(3 * (4.0 + 0.04))
    assert held(losses, input_order(losses, 2, 4), 2, 4) == pytest.approx(3 * 8.0)


@pytest.mark.parametrize(
    "value", [[0, 0], [1, 2], [0.0, 1.0], [False, True], "01", None, {"0": 1}, [[0]], [-1, 0]]
)
def test_what_is_no_order_is_refused(value: object) -> None:
    assert as_order(value) is None


def test_an_order_is_as_long_as_a_side_of_the_weight() -> None:
    assert as_order([1, 0, 2], (7, 3)) == (1, 0, 2)
    assert as_order([1, 0, 2], (7, 4)) is None


@exactly
@given(dim=st.sampled_from([0, 1, 2]), seed=st.integers(0, 99), by_row=st.booleans())
def test_a_layout_in_an_order_is_the_layout_of_the_ordered_weight(
    dim: int, seed: int, by_row: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = [3, 2, 3]
    shape[dim] = 8
    order = torch.randperm(8, generator=generator)
    scores = torch.randn(shape, generator=generator)
    turned = scores.index_select(dim, order)
    plain = Grouped(kept=2, size=4, dim=dim)
    ordered = Grouped(kept=2, size=4, dim=dim, order=tuple(order.tolist()))
    mask, same = ordered.centre(scores) > 0, plain.centre(turned) > 0
    assert torch.equal(mask.index_select(dim, order), same)
    none = torch.zeros_like(mask)
    assert ordered.holds(mask, none)
    assert ordered.holds(mask, none) == plain.holds(same, none)
    moved = ordered.permute(mask, generator, by_row=by_row)
    assert ordered.holds(moved, none)
    assert not ordered.holds(torch.ones_like(mask), none)
