"""Sampling: how many test examples a control is measured on, and what is remembered of them."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from slt_compress.evidence.metrics import Remembering
from slt_compress.evidence.sampling import ROWS, FirstRows


def labelled(size: int, shape: tuple[int, ...] = ()) -> dict[str, Tensor]:
    return {"pixel_values": torch.zeros(size, 2), "labels": torch.zeros(size, *shape).long()}


def test_a_share_of_so_many_rows_is_sure_to_one_percentage_point() -> None:
    assert ROWS == 9604
    assert 1.96 * (0.5 * 0.5 / ROWS) ** 0.5 <= 0.01


@pytest.mark.parametrize(
    ("batches", "given", "cut"),
    [
        ([labelled(4)] * 5, 12, True),
        ([labelled(4)] * 3, 12, False),
        ([labelled(2, (5,))] * 3, 2, True),
        ([{"labels": torch.tensor([[1, -100, -100]])}] * 12, 10, True),
        ([torch.zeros(6, 2)] * 4, 12, True),
        ([(torch.zeros(6, 2), torch.zeros(6))] * 4, 12, True),
    ],
    ids=["cut", "whole", "tokens", "ignored", "tensors", "pairs"],
)
def test_batches_end_when_there_are_enough_rows(
    batches: list[object], given: int, cut: bool
) -> None:
    first = FirstRows(batches, rows=10)
    seen = list(first)
    assert len(seen) == given / (first.examples / len(seen))
    assert (first.examples, first.cut) == (given, cut)
    assert len(list(first)) == len(seen)
    assert first.examples == given


def test_dense_rows_are_kept_as_long_as_they_fit() -> None:
    calls = []

    @contextmanager
    def dense():
        calls.append(1)
        yield

    reference = Remembering(dense, limit=100)
    with reference():
        pass
    assert calls == [1]
    reference.remember(0, torch.zeros(20))
    reference.remember(1, torch.zeros(20))
    assert reference.remembered(0) is not None
    assert reference.remembered(1) is None
