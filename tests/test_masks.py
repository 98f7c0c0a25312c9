"""Masks: an immutable mapping, its counts, and its packed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slt_compress.masks import Masks, pack_bits, unpack_bits

A = torch.tensor([[True, False, True], [False, False, True]])
B = torch.tensor([True, True, False, False])


def test_counts_are_of_the_kept_weights() -> None:
    masks = Masks({"a": A, "b": B})
    assert (masks.kept, masks.total, masks.density) == (5, 10, 0.5)
    assert masks.density_of("a") == 0.5
    assert masks.density_of("b") == 0.5
    assert list(masks) == ["a", "b"]
    assert len(masks) == 2
    assert repr(masks) == "Masks(2 sites, kept 5 of 10)"


def test_a_mask_of_nothing_has_density_zero() -> None:
    assert Masks({}).density == 0.0
    assert Masks({"a": torch.zeros(0, 3, dtype=torch.bool)}).density_of("a") == 0.0


def test_what_was_given_can_change_without_changing_the_masks() -> None:
    given_ = A.clone()
    source = {"a": given_}
    masks = Masks(source)
    given_.fill_(False)
    source["b"] = B
    assert torch.equal(masks["a"], A)
    assert list(masks) == ["a"]


def test_masks_cannot_be_assigned_to() -> None:
    masks = Masks({"a": A})
    with pytest.raises(TypeError):
        masks["a"] = B
    with pytest.raises(AttributeError):
        masks.other = 1


def test_a_mask_that_is_not_boolean_is_refused() -> None:
    with pytest.raises(TypeError, match=r"the mask of a is torch\.uint8"):
        Masks({"a": A.to(torch.uint8)})


def test_overlap_and_iou() -> None:
    one = Masks({"a": A, "b": B})
    other = Masks({"a": ~A, "b": torch.tensor([True, True, True, True])})
    assert one.overlap(one) == 1.0
    assert one.iou(one) == 1.0
    assert one.overlap(other) == 2 / 5
    assert other.overlap(one) == 2 / 7
    assert one.iou(other) == 2 / 10
    empty = Masks({"a": torch.zeros(2, dtype=torch.bool)})
    assert empty.overlap(empty) == 0.0
    assert empty.iou(empty) == 1.0


def test_masks_of_other_sites_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different sites or shapes"):
        Masks({"a": A}).iou(Masks({"a": A.T}))
    with pytest.raises(ValueError, match="different sites or shapes"):
        Masks({"a": A}).overlap(Masks({"b": A}))


def test_packed_bits_are_row_major_with_the_lowest_bit_first() -> None:
    bits = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)
    assert pack_bits(bits).tolist() == [0b00000101, 0b1]
    assert pack_bits(bits.T).tolist() == [0b00000001 | 0b01000000, 0b1]


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 2**31))
def test_packing_round_trips(shape: list[int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(mask)
    assert packed.dtype is torch.uint8
    assert packed.numel() == (mask.numel() + 7) // 8
    assert torch.equal(unpack_bits(packed, tuple(shape)), mask)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (torch.tensor([1, 0], dtype=torch.uint8), "packed form"),
        (torch.tensor([], dtype=torch.uint8), "packed form"),
        (torch.tensor([[1]], dtype=torch.uint8), "packed form"),
        (torch.tensor([1], dtype=torch.int8), "packed form"),
        (torch.tensor([0b100000], dtype=torch.uint8), "padding bit"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(packed: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack_bits(packed, (5,))
