"""Formats: bit-exact for every dtype, shape and density, golden bytes, and no trust in parts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slt_compress.artifacts.formats import (
    CODECS,
    FORMATS,
    Bitmask,
    Coded,
    Nm,
    NmPattern,
    SparseCsr,
    find_format,
    find_pattern,
    in_order,
    part_key,
)
from slt_compress.artifacts.formats.entropy import coded_nbytes, entropy_bits
from slt_compress.errors import ArtifactError

WHOLE = [name for name in FORMATS if name != "mask"]  # see test_entropy for masks alone
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)
WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def raw(tensor):
    return tensor.contiguous().view(WIDTHS[tensor.dtype.itemsize])


def random_bits(shape, dtype, generator):
    """Any bit pattern: zeros of both signs, infinities, NaNs with payloads, subnormals."""
    count = math.prod(shape) * dtype.itemsize
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


GOLDEN = [145, 48, 37, 0, 115, 96, 160, 224, 148, 38, 103, 244]

shapes = st.lists(st.integers(0, 9), min_size=0, max_size=4).map(tuple)


def nm_mask(shape, pattern, generator):
    """A random mask that keeps exactly `pattern.kept` of every group."""
    moved = [*shape[: pattern.axis], *shape[pattern.axis + 1 :], shape[pattern.axis]]
    order = torch.rand(math.prod(shape) // pattern.group, pattern.group, generator=generator)
    groups = order.argsort(dim=1) < pattern.kept
    return groups.reshape(moved).movedim(-1, pattern.axis).contiguous()


def check_round_trip(format, weight, mask):
    """Encode and decode by the codec that the format takes, and count its bytes."""
    shape, dtype, kept = tuple(weight.shape), weight.dtype, int(mask.sum())
    codec = format.choose(shape, kept, dtype, find_pattern(mask))
    parts = codec.encode(weight, mask)
    assert set(parts) == set(codec.parts)
    back = codec.decode(parts, shape=shape, dtype=dtype)
    assert back.dtype is dtype
    assert back.is_contiguous()
    assert torch.equal(raw(back), raw(weight).masked_fill(~mask, 0))
    bytes_held = sum(part.numel() * part.element_size() for part in parts.values())
    promised = format.nbytes(shape, kept, dtype, find_pattern(mask))
    assert bytes_held <= promised if codec.name == "coded" else bytes_held == promised
    found = codec.decode_mask(parts, shape=shape)
    assert (found is not None) == codec.sparse
    assert found is None or torch.equal(found, mask)
    # a sparse format always tells what was kept
    assert not format.sparse or codec.sparse or kept == mask.numel()
    return codec, bytes_held


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=shapes,
    dtype=st.sampled_from(DTYPES),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_round_trip_is_bit_exact(name, shape, dtype, density, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = random_bits(shape, dtype, generator)
    check_round_trip(FORMATS[name], weight, torch.rand(shape, generator=generator) < density)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    leading=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    trailing=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    groups=st.integers(1, 5),
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 5), (4, 8), (7, 16), (32, 64)]),
    dtype=st.sampled_from(DTYPES[:3]),
    seed=st.integers(0, 2**31),
)
def test_nm_round_trips_along_every_axis(leading, trailing, groups, pattern, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    found = NmPattern(kept=pattern[0], group=pattern[1], axis=len(leading))
    shape = (*leading, groups * pattern[1], *trailing)
    weight, mask = random_bits(shape, dtype, generator), nm_mask(shape, found, generator)
    # another axis or smaller groups may hold by chance, which is as good
    assert find_pattern(mask) is not None
    check_round_trip(FORMATS["nm"], weight, mask)
    sizes = {name: check_round_trip(FORMATS[name], weight, mask)[1] for name in WHOLE}
    assert sizes["auto"] <= min(sizes[name] for name in ("sparse-csr", "bitmask", "nm"))


def test_nm_takes_three_bits_for_two_of_four():
    pattern = NmPattern(kept=2, group=4, axis=1)
    mask = nm_mask((8, 16), pattern, torch.Generator().manual_seed(0))
    assert find_pattern(mask) == pattern
    parts = Nm().encode(torch.ones(8, 16, dtype=torch.bfloat16), mask)
    assert {name: part.nbytes for name, part in parts.items()} == {
        "pattern": 24,
        "positions": 32 * 3 // 8,
        "values": 64 * 2,
    }


def test_golden_parts_of_nm_and_bitmask():
    weight = torch.arange(1.0, 9.0).reshape(1, 8)
    mask = torch.tensor([[True, True, False, False, False, True, False, True]])
    parts = Nm().encode(weight, mask)
    # ranks: {0, 1} -> C(0,1) + C(1,2) = 0; {1, 3} -> C(1,1) + C(3,2) = 4; three bits each
    assert parts["positions"].tolist() == [0 | 4 << 3]
    assert parts["pattern"].tolist() == [2, 4, 1]
    assert parts["values"].tolist() == [1, 2, 6, 8]
    parts = Bitmask().encode(weight, mask)
    assert parts["bitmask"].tolist() == [0b10100011]
    assert parts["values"].tolist() == [1, 2, 6, 8]


def test_golden_parts_of_permuted_nm():
    weight = torch.arange(1.0, 9.0).reshape(1, 8)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    mask = torch.tensor([[True, False, True, False, False, True, False, True]])
    # in the order: 0, 2 of the even inputs are at the places 0, 1; 5, 7 of the odd ones at 2, 3
    parts = in_order(CODECS["permuted-nm"], order).encode(weight, mask)
    assert parts["order"].tolist() == list(order)
    assert parts["order"].dtype is torch.int32
    assert parts["pattern"].tolist() == [2, 4, 1]
    assert parts["positions"].tolist() == [0 | 5 << 3]
    assert parts["values"].tolist() == [1, 3, 6, 8]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    leading=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    trailing=st.lists(st.integers(1, 4), min_size=0, max_size=2),
    groups=st.integers(2, 5),
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 5), (4, 8)]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_a_permuted_pattern_round_trips(leading, trailing, groups, pattern, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    axis, size = len(leading), groups * pattern[1]
    shape = (*leading, size, *trailing)
    order = torch.randperm(size, generator=generator)
    plain = nm_mask(shape, NmPattern(kept=pattern[0], group=pattern[1], axis=axis), generator)
    mask, weight = plain.index_select(axis, order.argsort()), random_bits(shape, dtype, generator)
    given = tuple(order.tolist())
    found = find_pattern(mask, given)
    assert found is not None
    assert found.order == given
    codec = in_order(CODECS["permuted-nm"], given)
    parts = codec.encode(weight, mask)
    assert torch.equal(codec.decode_mask(parts, shape=shape), mask)
    back = CODECS["permuted-nm"].decode(parts, shape=shape, dtype=dtype)
    assert torch.equal(raw(back), raw(weight).masked_fill(~mask, 0))
    kept = int(mask.sum())
    held = sum(part.nbytes for part in parts.values())
    assert held == codec.nbytes(shape, kept, dtype, found)
    assert codec.nbytes(shape, kept, dtype, find_pattern(plain)) is None
    assert Nm().nbytes(shape, kept, dtype, found) is None
    chosen = FORMATS["nm"].choose(shape, kept, dtype, found)
    assert chosen.nbytes(shape, kept, dtype, found) <= held


def test_the_nm_format_stores_an_order_where_that_is_smaller_than_a_bitmask():
    order = tuple(range(15, -1, -1))
    found = NmPattern(kept=2, group=4, axis=1, order=order)
    chosen = [FORMATS["nm"].choose((n, 16), n * 8, torch.float32, found).name for n in (8, 800)]
    assert chosen == ["bitmask", "permuted-nm"]


@pytest.mark.parametrize(
    "order",
    [
        torch.tensor([0, 0, 2, 3, 4, 5, 6, 7], dtype=torch.int32),
        torch.tensor([8, 1, 2, 3, 4, 5, 6, 7], dtype=torch.int32),
        torch.arange(7, dtype=torch.int32),
        torch.arange(8),
    ],
    ids=["twice", "outside", "short", "int64"],
)
def test_an_order_that_is_none_is_refused(order):
    mask = torch.tensor([[True, True, False, False, False, True, True, False]])
    codec = in_order(CODECS["permuted-nm"], (0, 2, 4, 6, 1, 3, 5, 7))
    parts = codec.encode(torch.ones(1, 8), mask)
    with pytest.raises(ArtifactError, match="order"):
        codec.decode_mask({**parts, "order": order}, shape=(1, 8))
    with pytest.raises(ArtifactError, match="order"):
        codec.decode({**parts, "order": order}, shape=(1, 8), dtype=torch.float32)
    with pytest.raises(ArtifactError, match="no N:M pattern"):
        in_order(codec, (0, 1, 2, 3, 4, 5, 6, 7)).encode(torch.ones(1, 8), mask & False)


def test_golden_parts_of_coded():
    mask = torch.arange(96).reshape(3, 32) % 7 == 0
    parts = Coded().encode(torch.arange(96.0).reshape(3, 32), mask)
    assert parts["mask"].tolist() == GOLDEN
    assert parts["values"].tolist() == [7.0 * i for i in range(14)]
    assert torch.equal(Coded().decode_mask(parts, shape=(3, 32)), mask)


@pytest.mark.parametrize("density", [0.001, 0.02, 0.1, 0.5, 0.9])
def test_coded_comes_close_to_the_entropy_of_its_mask(density):
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(300, 400, generator=generator) < density
    kept = int(mask.sum())
    held = Coded().encode(torch.zeros(300, 400), mask)["mask"].nbytes
    bound = entropy_bits(mask.numel(), kept) / 8
    assert held <= coded_nbytes(mask.numel(), kept) < 1.002 * bound + 16


def test_coded_knows_what_the_densities_of_rows_tell():
    generator = torch.Generator().manual_seed(3)
    rows = torch.linspace(0.01, 0.5, 256)[:, None]
    mask = torch.rand(256, 256, generator=generator) < rows
    held = Coded().encode(torch.zeros(256, 256), mask)["mask"].nbytes
    assert held < 0.92 * coded_nbytes(mask.numel(), int(mask.sum()))


def test_auto_takes_the_smallest():
    auto = FORMATS["auto"]
    shape, fp32, bf16 = (768, 768), torch.float32, torch.bfloat16
    total = math.prod(shape)
    assert auto.choose(shape, total, fp32).name == "dense"
    assert auto.choose(shape, total // 2, fp32).name == "bitmask"
    assert auto.choose(shape, total // 10, fp32).name == "coded"
    assert auto.choose((4, 8), 3, fp32).name == "bitmask"  # too small for a coder to pay
    half = NmPattern(kept=2, group=4, axis=1)
    assert auto.choose(shape, total // 2, bf16, half).name == "nm"
    assert FORMATS["nm"].choose(shape, total // 2, bf16).name == "bitmask"
    # nothing but a dense weight that keeps everything can do without a mask
    assert auto.choose(shape, total - 1, fp32).name == "coded"
    sites = [(shape, total // 10, fp32), (shape, total // 100, fp32)]
    whole = 2 * total * 4
    held = auto.nbytes(*sites[0]) + auto.nbytes(*sites[1])
    assert auto.model_nbytes(whole + 100, sites) == held + 100


def test_a_mask_without_a_pattern_has_none():
    mask = torch.ones(4, 8, dtype=torch.bool)
    assert find_pattern(mask) is None
    assert find_pattern(torch.zeros(0, 4, dtype=torch.bool)) is None
    mask[0, :4] = False
    assert find_pattern(mask) is None
    with pytest.raises(ArtifactError, match="N:M"):
        Nm().encode(torch.ones(4, 8), mask)


def pattern_of(codec):
    """A small mask that the codec can store."""
    if codec.name in ("nm", "permuted-nm"):
        return torch.tensor([[True, False] * 2, [False, True] * 2, [True, False] * 2])
    return torch.arange(12).reshape(3, 4) % 3 == 0


@pytest.mark.parametrize("name", CODECS)
def test_views_are_stored_by_value(name):
    weight = torch.arange(12.0).reshape(4, 3).T
    mask = pattern_of(CODECS[name])
    for kept in (mask, mask.T.contiguous().T):
        parts = CODECS[name].encode(weight, kept)
        back = CODECS[name].decode(parts, shape=(3, 4), dtype=torch.float32)
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


def nm_parts():
    mask = nm_mask((2, 16), NmPattern(kept=2, group=4, axis=1), torch.Generator().manual_seed(0))
    return Nm().encode(torch.ones(2, 16), mask)


NM_DAMAGE = {
    "a missing part": lambda parts: {k: v for k, v in parts.items() if k != "pattern"},
    "a pattern of floats": change("pattern", torch.tensor([2.0, 4.0, 1.0])),
    "a long pattern": change("pattern", torch.tensor([2, 4, 1, 0])),
    "a group of nothing": change("pattern", torch.tensor([0, 4, 1])),
    "a group of zero": change("pattern", torch.tensor([0, 0, 1])),
    "a negative group": change("pattern", torch.tensor([-2, -4, 1])),
    "a whole group": change("pattern", torch.tensor([4, 4, 1])),
    "a huge group": change("pattern", torch.tensor([2, 2**62, 1])),
    "a group that does not divide": change("pattern", torch.tensor([2, 3, 1])),
    "another axis": change("pattern", torch.tensor([2, 4, 2])),
    "a negative axis": change("pattern", torch.tensor([2, 4, -1])),
    "too few positions": change("positions", index(0, 0)),
    "too many positions": change("positions", index(0, 0, 0, 0)),
    "a number that is no choice": change("positions", index(255, 0, 0)),
    "positions of another dtype": change("positions", torch.zeros(3, dtype=torch.int64)),
    "too few values": change("values", torch.ones(15)),
    "values as a matrix": change("values", torch.ones(16, 1)),
}


@pytest.mark.parametrize("damage", NM_DAMAGE)
def test_damaged_nm_is_refused(damage):
    Nm().decode(nm_parts(), shape=(2, 16), dtype=torch.float32)
    parts = NM_DAMAGE[damage](nm_parts())
    with pytest.raises(ArtifactError):
        Nm().decode(parts, shape=(2, 16), dtype=torch.float32)
    with pytest.raises(ArtifactError):
        Nm().decode_mask(parts, shape=(2, 16))


def test_bits_behind_the_last_are_refused():
    parts = Bitmask().encode(torch.ones(3), torch.tensor([True, False, True]))
    with pytest.raises(ArtifactError, match="padding bit"):
        Bitmask().decode_mask(parts | {"bitmask": index(0b1101)}, shape=(3,))
    with pytest.raises(ArtifactError, match="values"):
        Bitmask().decode(parts | {"bitmask": index(0b111)}, shape=(3,), dtype=torch.float32)
    with pytest.raises(ArtifactError, match="is not the packed form"):
        Bitmask().decode_mask(parts, shape=(30,))
    mask = torch.tensor([[True, True, False, False] * 3])
    parts = Nm().encode(torch.ones(1, 12), mask)
    parts["positions"][-1] |= 0b10
    with pytest.raises(ArtifactError, match="after the last"):
        Nm().decode_mask(parts, shape=(1, 12))


def test_values_of_another_dtype_are_refused():
    for codec in CODECS.values():
        parts = codec.encode(torch.ones(3, 4), pattern_of(codec))
        with pytest.raises(ArtifactError, match="float32"):
            codec.decode(parts, shape=(3, 4), dtype=torch.float16)


def test_a_dense_tensor_of_another_shape_is_refused():
    with pytest.raises(ArtifactError, match="is expected"):
        CODECS["dense"].decode({"": torch.ones(4, 3)}, shape=(3, 4), dtype=torch.float32)
    with pytest.raises(ArtifactError, match="parts"):
        CODECS["dense"].decode({"values": torch.ones(3)}, shape=(3,), dtype=torch.float32)


def test_a_mask_that_does_not_fit_is_refused():
    for codec in CODECS.values():
        for mask in (torch.ones(4, 3, dtype=torch.bool), torch.ones(3, 4)):
            with pytest.raises(ArtifactError, match="does not fit"):
                codec.encode(torch.ones(3, 4), mask)
        with pytest.raises(ArtifactError, match=r"cannot be (stored by mask|packed)"):
            codec.encode(torch.ones(3, 4, dtype=torch.complex128), pattern_of(codec))


def test_the_table_names_its_rows():
    assert all(name == codec.name for name, codec in CODECS.items())
    assert all(name == format.name for name, format in FORMATS.items())
    assert find_format("sparse-csr") is FORMATS["sparse-csr"]
    with pytest.raises(ArtifactError, match="dense, sparse-csr"):
        find_format("zip")
    assert [part_key("w", part) for part in ("", "values")] == ["w", "w.values"]
