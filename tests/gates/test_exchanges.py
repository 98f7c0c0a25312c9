"""Exchanges of weights: against brute force, and what holds after them whatever the layer."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slt_compress.gates.exchanges import (
    Bounds,
    blend,
    costs,
    exchange_in_rows,
    row_errors,
)
from slt_compress.gates.row_exchanges import exchange_across_rows

SEEDS = st.integers(0, 2**32 - 1)


def layer(seed: int, rows: int, columns: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, a random mask with `kept` weights in each row, and a Gram matrix; fp64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns, columns, generator=generator).double()
    mixed = inputs @ torch.randn(columns, columns, generator=generator).double()
    weight = torch.randn(rows, columns, generator=generator).double()
    order = torch.rand(rows, columns, generator=generator).argsort(1)
    return weight, order < kept, mixed.t() @ mixed / len(mixed)


def pairs(mask: Tensor) -> list[tuple[int, int]]:
    """All removed and kept columns of one row."""
    removed, kept = (~mask).nonzero().flatten().tolist(), mask.nonzero().flatten().tolist()
    return [(p, u) for p in removed for u in kept]


def exchanged(mask: Tensor, p: int, u: int) -> Tensor:
    """The mask of one row with p back and u gone."""
    other = mask.clone()
    other[p], other[u] = True, False
    return other


def error(weight: Tensor, mask: Tensor, gram: Tensor) -> float:
    """The error of one row, from its definition."""
    missed = torch.where(mask, 0.0, weight)
    return float(missed @ gram @ missed)


@given(seed=SEEDS, columns=st.integers(2, 9), data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_exchange_within_a_row_is_left_that_lowers_its_error(
    seed: int, columns: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, columns - 1))
    weight, mask, gram = layer(seed, 3, columns, kept)
    after = exchange_in_rows(weight, mask, gram, pool=columns)
    assert after.sum(1).tolist() == [kept] * 3
    before, now = row_errors(weight, mask, gram), row_errors(weight, after, gram)
    assert bool((now <= before).all())
    for row in range(3):
        own = error(weight[row], after[row], gram)
        assert float(now[row]) == pytest.approx(own)
        least = min(error(weight[row], exchanged(after[row], p, u), gram)
                    for p, u in pairs(after[row]))  # fmt: skip
        assert least >= own - 1e-9 * (1.0 + float(before[row]))


@given(seed=SEEDS, columns=st.integers(2, 8), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_first_exchange_is_the_best_of_all(
    seed: int, columns: int, data: st.DataObject
) -> None:
    """What the costs say of every pair is the change of the error, so that the best is the best."""
    kept = data.draw(st.integers(1, columns - 1))
    weight, mask, gram = layer(seed, 1, columns, kept)
    back, gone = costs(weight, mask, gram, None)
    own = error(weight[0], mask[0], gram)
    for p, u in pairs(mask[0]):
        told = back[0, p] + gone[0, u] - 2.0 * weight[0, p] * weight[0, u] * gram[p, u]
        change = error(weight[0], exchanged(mask[0], p, u), gram) - own
        assert float(told) == pytest.approx(change, rel=1e-9, abs=1e-9 * (1.0 + own))


@given(seed=SEEDS, pool=st.integers(1, 12), kept=st.integers(1, 11))
@settings(max_examples=40, deadline=None)
def test_small_pools_keep_the_counts_and_never_raise_an_error(
    seed: int, pool: int, kept: int
) -> None:
    weight, mask, gram = layer(seed, 5, 12, kept)
    after = exchange_in_rows(weight.float(), mask, gram.float(), pool=pool)
    assert after.sum(1).tolist() == [kept] * 5
    assert bool((row_errors(weight.float(), after, gram.float())
                 <= row_errors(weight.float(), mask, gram.float())).all())  # fmt: skip


@pytest.mark.parametrize(("kept", "size"), [(1, 2), (2, 4), (1, 4), (3, 4), (2, 3)])
@pytest.mark.parametrize("seed", range(5))
def test_groups_keep_their_count_and_are_optimal_by_single_exchanges(
    kept: int, size: int, seed: int
) -> None:
    columns = 4 * size
    weight, _, gram = layer(seed, 4, columns, 1)
    order = torch.rand(4, 4, size, generator=torch.Generator().manual_seed(seed)).argsort(2)
    mask = (order < kept).reshape(4, columns)
    after = exchange_in_rows(weight, mask, gram, Bounds(group=size), pool=2)
    assert bool((after.reshape(4, -1, size).sum(2) == kept).all())
    for row in range(4):
        own = error(weight[row], after[row], gram)
        assert own <= error(weight[row], mask[row], gram) + 1e-9
        for p, u in pairs(after[row]):
            if p // size == u // size:
                assert error(weight[row], exchanged(after[row], p, u), gram) >= own - 1e-6


@given(seed=SEEDS, kept=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_across_rows_no_exchange_is_left_that_lowers_the_sum(seed: int, kept: int) -> None:
    weight, mask, gram = layer(seed, 4, 8, kept)
    weight = weight * torch.tensor([[0.1], [1.0], [3.0], [1.0]])
    within = exchange_in_rows(weight, mask, gram, pool=8)
    after = exchange_across_rows(weight, within, gram, pool=8)
    assert int(after.sum()) == 4 * kept
    errors = row_errors(weight, after, gram)
    total = float(errors.sum())
    assert total <= float(row_errors(weight, within, gram).sum()) + 1e-9
    tolerance = 1e-9 * (1.0 + float(row_errors(weight, mask, gram).sum()))
    back, gone = costs(weight, after, gram, None)
    for first, second in combinations(range(4), 2):
        for one, other in ((first, second), (second, first)):
            assert float(back[one].min() + gone[other].min()) >= -tolerance


def test_only_what_is_allowed_comes_back() -> None:
    weight, mask, gram = layer(3, 6, 10, 4)
    allowed = mask | (torch.rand(6, 10, generator=torch.Generator().manual_seed(1)) < 0.3)
    bounds = Bounds(allowed=allowed)
    within = exchange_in_rows(weight, mask, gram, bounds)
    across = exchange_across_rows(weight, within, gram, bounds)
    assert not torch.equal(mask, within)
    for after in (within, across):
        assert int(after.sum()) == 24
        assert not bool((after & ~allowed).any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_order_of_inputs_and_rows_does_not_matter(dtype: torch.dtype) -> None:
    weight, mask, gram = layer(5, 7, 24, 9)
    weight, gram = weight.to(dtype), gram.to(dtype)
    generator = torch.Generator().manual_seed(2)
    columns, rows = torch.randperm(24, generator=generator), torch.randperm(7, generator=generator)
    after = exchange_in_rows(weight, mask, gram)
    moved = exchange_in_rows(
        weight[rows][:, columns], mask[rows][:, columns], gram[columns][:, columns]
    )
    assert torch.equal(moved, after[rows][:, columns])


def test_the_bits_are_the_same_every_time() -> None:
    weight, mask, gram = layer(6, 50, 40, 20)
    first, second = (exchange_across_rows(weight, mask, gram) for _ in range(2))
    assert torch.equal(first, second)


def test_the_diagonal_alone_leaves_the_largest_products() -> None:
    """At lambda = 1 the error of a row is the sum of w^2 G_jj, least for Wanda's mask."""
    weight, mask, gram = layer(7, 5, 16, 6)
    diagonal = blend(gram, 1.0)
    assert torch.equal(diagonal, torch.diag(gram.diagonal()))
    after = exchange_in_rows(weight, mask, diagonal)
    products = weight.abs() * gram.diagonal().sqrt()
    assert torch.equal(after, products.argsort(1, descending=True).argsort(1) < 6)


def test_a_blend_lies_between_the_matrix_and_its_diagonal() -> None:
    gram = layer(8, 1, 5, 1)[2]
    half = blend(gram, 0.5)
    assert torch.allclose(half, 0.5 * gram + 0.5 * torch.diag(gram.diagonal()))
    assert torch.equal(blend(gram, 0.0), gram)


@pytest.mark.parametrize("kept", [0, 6])
def test_rows_without_a_choice_stay(kept: int) -> None:
    weight, mask, gram = layer(9, 3, 6, kept)
    assert torch.equal(exchange_in_rows(weight, mask, gram), mask)
    assert torch.equal(exchange_across_rows(weight, mask, gram), mask)
