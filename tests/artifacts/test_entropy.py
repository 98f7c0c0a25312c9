"""Masks on their own: exact, near the entropy bound, the same on every machine, and no trust."""

from __future__ import annotations

import contextlib
import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from range_coder import Reference

from slt_compress.artifacts.formats import FORMATS, decode_masks, encode_masks
from slt_compress.artifacts.formats.entropy import entropy_bits
from slt_compress.errors import ArtifactError

LARGER = "e5770b16548a2baf"


def random_mask(shape, density, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def uneven(rows, columns, seed=0):
    """A mask whose rows and columns have densities of their own."""
    generator = torch.Generator().manual_seed(seed)
    by_row, by_column = (torch.rand(n, generator=generator) * 0.6 for n in (rows, columns))
    return torch.rand(rows, columns, generator=generator) < by_row[:, None] * by_column


def check(masks):
    stream = encode_masks(masks)
    back = decode_masks(stream, [tuple(mask.shape) for mask in masks])
    assert len(back) == len(masks)
    assert all(torch.equal(found, mask) for found, mask in zip(back, masks, strict=True))
    return stream


def bound(masks):
    """Bytes of the entropy of masks whose densities are known."""
    return sum(entropy_bits(mask.numel(), int(mask.sum())) for mask in masks) / 8


shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    shapes=st.lists(shapes, min_size=0, max_size=4),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_round_trip(shapes, density, seed):
    check([random_mask(shape, density, seed + i) for i, shape in enumerate(shapes)])


@pytest.mark.parametrize("density", [0.5, 0.1, 0.05, 0.01, 0.001])
def test_a_mask_takes_what_its_density_leaves_open(density):
    masks = [random_mask((768, 768), density, seed) for seed in range(2)]
    masks.append(random_mask((64, 32, 3, 3), density, 2))
    assert len(check(masks)) <= bound(masks) * 1.003 + 24  # a few numbers a mask


def test_rows_and_columns_of_their_own_density_take_less():
    masks = [uneven(384, 512)]
    whole = len(check(masks))
    assert whole < 0.92 * bound(masks)
    assert len(check([masks[0].T.contiguous()])) < 0.92 * bound(masks)
    rows = [torch.arange(256)[:, None] % 4 * torch.ones(256) > 2]
    assert len(check(rows)) < 0.02 * bound(rows)


def test_sizes_are_promised_within_three_per_mille():
    mask = random_mask((512, 512), 0.1)
    promised = FORMATS["mask"].nbytes((512, 512), int(mask.sum()), torch.float32)
    assert 1.0 <= len(check([mask])) / promised < 1.003


@pytest.mark.parametrize("mask", [random_mask((5, 40), 0.3), uneven(96, 80)], ids=["one", "many"])
def test_the_specification_decodes_what_is_written(mask):
    reference = Reference(check([mask, mask]).numpy().tobytes())
    for _ in range(2):
        assert torch.equal(torch.tensor(reference.mask(*mask.shape)), mask)


def test_golden_bytes():
    mask = (torch.arange(24) % 3 == 0).reshape(4, 6)
    assert check([mask]).numpy().tobytes().hex() == "720055002e4e9f8e"
    masks = [(torch.arange(n * 64) ** 2 % 11 < n % 5).reshape(n, 64) for n in (31, 32, 33)]
    digest = hashlib.sha256(check(masks).numpy().tobytes()).hexdigest()
    assert digest[:16] == LARGER


def test_what_is_no_stream_of_the_masks_is_refused():
    masks = [uneven(48, 64), random_mask((10, 10), 0.5)]
    stream, shapes = encode_masks(masks), [(48, 64), (10, 10)]
    for odd in (stream[:-1], stream.view(torch.int32), stream[None], stream.float()):
        with pytest.raises(ArtifactError, match="not a whole number of words"):
            decode_masks(odd, shapes)
    with pytest.raises(ArtifactError, match="more data in its masks"):
        decode_masks(stream, [])
    with pytest.raises(ArtifactError, match="more data in its masks"):
        decode_masks(torch.cat([stream, stream]), shapes)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.binary(max_size=96), rows=st.integers(0, 40), columns=st.integers(0, 40))
def test_any_bytes_give_masks_of_the_shape_or_an_error(data, rows, columns):
    stream = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0)
    with contextlib.suppress(ArtifactError):
        masks = decode_masks(stream.to(torch.uint8), [(rows, columns)])
        assert masks[0].shape == (rows, columns)
        assert masks[0].dtype is torch.bool


def test_entropy_of_nothing_is_nothing():
    assert entropy_bits(0, 0) == entropy_bits(8, 0) == entropy_bits(8, 8) == 0
    assert entropy_bits(8, 4) == 8
    assert math.isclose(entropy_bits(100, 10), 46.8996, rel_tol=1e-4)
