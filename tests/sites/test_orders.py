"""Orders: those of a stable sort of the drawn numbers, on every machine."""

from __future__ import annotations

import pytest
import torch

from slt_compress.sites.orders import permuted, random_order


@pytest.mark.parametrize("shape", [(1, 200_000), (40, 5_000), (7, 1), (3, 784)])
def test_the_order_is_that_of_a_stable_sort(shape: tuple[int, int]) -> None:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(4))
    expected = drawn.sort(dim=1, stable=True).indices
    order = random_order(shape, torch.Generator().manual_seed(4))
    assert torch.equal(order, expected)
    rows = torch.randn(shape)
    assert torch.equal(permuted(rows, torch.Generator().manual_seed(4)), rows.gather(1, expected))
