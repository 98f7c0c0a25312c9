"""Formats: bit-exact for every dtype, shape and density, golden bytes, and no trust in parts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slt_compress.errors import ArtifactError
from slt_compress.formats import FORMATS, SparseCsr, find_format, part_key

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)
WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def raw(tensor):
    return tensor.contiguous().view(WIDTHS[tensor.dtype.itemsize])


def random_bits(shape, dtype, generator):
    """Any bit pattern: zeros of both signs, infinities, NaNs with payloads, subnormals."""
    count = math.prod(shape) * dtype.itemsize
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    shape=shapes,
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_round_trip_is_bit_exact(name, shape, dtype, density, seed):
    codec = FORMATS[name]
    generator = torch.Generator().manual_seed(seed)
    weight = random_bits(shape, dtype, generator)
    mask = torch.rand(shape, generator=generator) < density
    parts = codec.encode(weight, mask)
    assert set(parts) == set(codec.parts)
    back = codec.decode(parts, shape=shape, dtype=dtype)
    assert back.dtype is dtype
    assert torch.equal(raw(back), raw(weight).masked_fill(~mask, 0))
    bytes_held = sum(part.numel() * part.element_size() for part in parts.values())
    assert bytes_held == codec.nbytes(shape, int(mask.sum()), dtype)
    found = codec.decode_mask(parts, shape=shape)
    assert (found is not None) == codec.sparse
    assert found is None or torch.equal(found, mask)


@pytest.mark.parametrize("name", FORMATS)
def test_views_are_stored_by_value(name):
    weight = torch.arange(12.0).reshape(3, 4).T
    mask = weight % 2 == 0
    back = FORMATS[name].decode(
        FORMATS[name].encode(weight, mask), shape=(4, 3), dtype=torch.float32
    )
    assert torch.equal(back, weight * mask)


def test_csr_holds_these_parts():
    weight = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, 0.0], [-0.0, 2.0, 3.0]])
    mask = torch.tensor([[True, True, False], [False] * 3, [True, False, True]])
    parts = SparseCsr().encode(weight, mask)
    assert parts["crow_indices"].tolist() == [0, 2, 2, 4]
    assert parts["col_indices"].tolist() == [0, 1, 0, 2]
    assert raw(parts["values"]).tolist() == [0, 0x3FC00000, -0x80000000, 0x40400000]
    assert parts["shape"].tolist() == [3, 3]


def test_csr_flattens_a_convolution_to_first_and_rest():
    weight = torch.arange(24.0).reshape(2, 3, 2, 2)
    parts = SparseCsr().encode(weight, weight == 17)
    assert parts["crow_indices"].tolist() == [0, 0, 1]
    assert parts["col_indices"].tolist() == [5]
    assert parts["shape"].tolist() == [2, 3, 2, 2]


@pytest.mark.parametrize(
    ("cols", "dtype"),
    [
        (256, torch.uint8),
        (257, torch.uint16),
        (65536, torch.uint16),
        (65537, torch.int32),
    ],
)
def test_columns_take_the_smallest_dtype(cols, dtype):
    mask = torch.zeros(1, cols, dtype=torch.bool)
    mask[0, -1] = True
    parts = SparseCsr().encode(torch.ones(1, cols), mask)
    assert parts["col_indices"].dtype is dtype
    assert parts["col_indices"].long().tolist() == [cols - 1]
    back = SparseCsr().decode(parts, shape=(1, cols), dtype=torch.float32)
    assert back.nonzero().tolist() == [[0, cols - 1]]


@pytest.mark.parametrize(
    ("kept", "dtype"), [(255, torch.uint8), (256, torch.uint16), (65536, torch.int32)]
)
def test_row_offsets_take_the_smallest_dtype(kept, dtype):
    mask = torch.zeros(70000, 1, dtype=torch.bool)
    mask[:kept] = True
    parts = SparseCsr().encode(torch.ones(70000, 1), mask)
    assert parts["crow_indices"].dtype is dtype
    assert torch.equal(SparseCsr().decode_mask(parts, shape=(70000, 1)), mask)
    assert sum(p.nbytes for p in parts.values()) == SparseCsr().nbytes(
        (70000, 1), kept, torch.float32
    )


def good():
    weight = torch.arange(1.0, 13.0).reshape(3, 4)
    return SparseCsr().encode(weight, weight % 2 == 0)


def change(part, tensor):
    return lambda parts: parts | {part: tensor}


def index(*values, dtype=torch.uint8):
    return torch.tensor(values, dtype=dtype)


DAMAGE = {
    "no part": lambda parts: {},
    "a missing part": lambda parts: {k: v for k, v in parts.items() if k != "shape"},
    "an extra part": change("more", torch.zeros(1)),
    "another shape": change("shape", index(4, 3, dtype=torch.int64)),
    "a flat shape": change("shape", index(12, dtype=torch.int64)),
    "a shape of floats": change("shape", torch.tensor([3.0, 4.0])),
    "a scalar shape": change("shape", torch.tensor(3)),
    "too few rows": change("crow_indices", index(0, 2, 6)),
    "too many rows": change("crow_indices", index(0, 2, 4, 6, 6)),
    "no rows": change("crow_indices", index()),
    "a late start": change("crow_indices", index(1, 2, 4, 6)),
    "an early end": change("crow_indices", index(0, 2, 4, 5)),
    "a late end": change("crow_indices", index(0, 2, 4, 7)),
    "falling rows": change("crow_indices", index(0, 4, 2, 6)),
    "negative rows": change("crow_indices", index(0, -2, 4, 6, dtype=torch.int32)),
    "rows that wrap": change("crow_indices", index(0, 2**63 - 1, -2, 6, dtype=torch.int64)),
    "rows of floats": change("crow_indices", torch.tensor([0.0, 2.0, 4.0, 6.0])),
    "rows as a matrix": change("crow_indices", index(0, 2, 4, 6)[None]),
    "a column outside": change("col_indices", index(1, 4, 1, 3, 1, 3)),
    "a negative column": change("col_indices", index(1, 3, -1, 3, 1, 3, dtype=torch.int32)),
    "a huge column": change("col_indices", index(1, 2**62, 1, 3, 1, 3, dtype=torch.int64)),
    "falling columns": change("col_indices", index(3, 1, 1, 3, 1, 3)),
    "a column twice": change("col_indices", index(1, 1, 1, 3, 1, 3)),
    "too few columns": change("col_indices", index(1, 3, 1, 3, 1)),
    "boolean columns": change("col_indices", torch.ones(6, dtype=torch.bool)),
    "too many values": change("values", torch.zeros(7)),
    "values as a matrix": change("values", torch.zeros(6, 1)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_csr_is_refused(damage):
    parts = DAMAGE[damage](good())
    with pytest.raises(ArtifactError):
        SparseCsr().decode(parts, shape=(3, 4), dtype=torch.float32)
    with pytest.raises(ArtifactError):
        SparseCsr().decode_mask(parts, shape=(3, 4))


def test_the_undamaged_parts_are_accepted():
    assert SparseCsr().decode(good(), shape=(3, 4), dtype=torch.float32).sum() == 42


def test_values_of_another_dtype_are_refused():
    for name, codec in FORMATS.items():
        parts = codec.encode(torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool))
        with pytest.raises(ArtifactError, match="float32"):
            FORMATS[name].decode(parts, shape=(3, 4), dtype=torch.float16)


def test_a_dense_tensor_of_another_shape_is_refused():
    with pytest.raises(ArtifactError, match="is expected"):
        FORMATS["dense"].decode({"": torch.ones(4, 3)}, shape=(3, 4), dtype=torch.float32)
    with pytest.raises(ArtifactError, match="parts"):
        FORMATS["dense"].decode({"values": torch.ones(3)}, shape=(3,), dtype=torch.float32)


def test_a_mask_that_does_not_fit_is_refused():
    for codec in FORMATS.values():
        for mask in (torch.ones(4, 3, dtype=torch.bool), torch.ones(3, 4)):
            with pytest.raises(ArtifactError, match="does not fit"):
                codec.encode(torch.ones(3, 4), mask)
        with pytest.raises(ArtifactError, match="cannot be stored by mask"):
            codec.encode(torch.ones(2, dtype=torch.complex128), torch.ones(2, dtype=torch.bool))


def test_the_table_names_its_rows():
    assert all(name == codec.name for name, codec in FORMATS.items())
    assert find_format("sparse-csr") is FORMATS["sparse-csr"]
    with pytest.raises(ArtifactError, match="dense, sparse-csr"):
        find_format("zip")
    assert [part_key("w", part) for part in ("", "values")] == ["w", "w.values"]
