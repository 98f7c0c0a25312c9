"""Packed values: exact, near the entropy of their exponents, golden bytes, and no trust."""

from __future__ import annotations

import contextlib
import hashlib
import math

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from range_coder import Reference

from slt_compress.artifacts.formats import CODECS, FORMATS, encode_masks, is_plain
from slt_compress.artifacts.formats.byte_planes import can_encode, decode_planes, encode_planes
from slt_compress.artifacts.formats.entropy import entropy_bits
from slt_compress.errors import ArtifactError
from slt_compress.storage.bits import bits, same_bits

DTYPES = [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
PACKED = [name for name in CODECS if name.startswith("packed-")]


def gaussian(count, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * 0.03).to(dtype)


def any_bits(count, dtype, seed):
    """Every bit pattern: NaN payloads, infinities, subnormals, zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    size = (count * dtype.itemsize,)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).view(dtype)


def check(values):
    message, rest = encode_planes(values)
    assert same_bits(decode_planes(message, rest, len(values), values.dtype), values)
    return message, rest


def entropy(symbols):
    counts = symbols.unique(return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    count=st.integers(0, 400),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(["any bits", "few", "one", "two far apart"]),
    seed=st.integers(0, 2**31),
)
def test_every_bit_comes_back(count, dtype, kind, seed):
    values = any_bits(count, dtype, seed)
    if kind != "any bits" and count:
        known = {"few": 7, "one": 1, "two far apart": 2}[kind]
        generator = torch.Generator().manual_seed(seed)
        places = torch.randint(0, min(known, count), (count,), generator=generator)
        values = bits(values)[places].view(dtype)
    check(values)


def test_booleans_come_back():
    check(torch.arange(300) % 3 == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exponents_take_their_entropy_and_mantissas_their_bits(dtype):
    values = gaussian(60_000, dtype)
    message, rest = check(values)
    width = {torch.float32: 23, torch.bfloat16: 7}[dtype]
    exponents = bits(values).long() >> width & 255
    bound = len(values) * (entropy(exponents) + width + 1) / 8
    assert bound <= message.nbytes + rest.nbytes < 1.002 * bound + 100
    assert message.nbytes + rest.nbytes < {4: 0.85, 2: 0.7}[dtype.itemsize] * values.nbytes


def test_half_precision_is_packed_too():
    values = gaussian(60_000, torch.float16)
    assert sum(part.nbytes for part in check(values)) < 0.9 * values.nbytes


def test_bytes_that_say_nothing_take_nothing():
    narrow = gaussian(50_000, torch.bfloat16)
    wide = sum(part.nbytes for part in check(narrow.float()))
    # a float32 that was a bfloat16 has two empty bytes, but for the sign
    assert wide < sum(part.nbytes for part in check(narrow)) + 50_000 / 8 + 200
    constant = torch.full((50_000,), 0.5)
    constant[::2] = -0.5
    message, rest = check(constant)
    assert rest.nbytes == 0
    assert message.nbytes < 50_000 / 8 + 200


@pytest.mark.parametrize("kind", ["gaussian", "narrow", "few", "none"])
def test_the_specification_decodes_what_is_written(kind):
    values = {
        "gaussian": gaussian(300), "narrow": gaussian(200).bfloat16().float(),
        "few": torch.tensor([1.5, -2.5, 0.0] * 40), "none": torch.zeros(0),
    }[kind]  # fmt: skip
    message, rest = check(values)
    reference, count = Reference(message.numpy().tobytes()), len(values)
    assert reference.uniform(64) == 0  # float32
    planes = [reference.plane(count) for _ in range(4)]
    raw = sum(plane is None for plane in planes)
    for i, number in enumerate(bits(values).tolist()):
        left = iter(reversed(rest[i * raw : (i + 1) * raw].tolist()))
        digits = [next(left) if plane is None else plane[i] for plane in planes]
        turned = int.from_bytes(bytes(digits), "big")
        assert (turned >> 1 | (turned & 1) << 31) == number % 2**32


def thinning(count, dtype=torch.float32, seed=0):
    """What a magnitude mask keeps of Gaussian weights: ever fewer above a threshold."""
    values = gaussian(40 * count, dtype, seed)
    return values[values.abs() > 0.05][:count]


@pytest.mark.parametrize("count", [2_000, 2_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_specification_decodes_wide_values(dtype, count):
    values = thinning(count, dtype)
    message, rest = check(values)
    size = dtype.itemsize
    reference = Reference(message.numpy().tobytes())
    assert reference.uniform(64) == 32 + DTYPES.index(dtype)
    widths = [12, 4] + [8] * (size - 2)
    planes = [reference.plane(count, width) for width in widths]
    assert [plane is None for plane in planes] == [False] + [True] * (size - 1)
    raw, rest = size - 2, rest.tolist()
    assert len(rest) == count * raw + (count + 1) // 2
    for i, number in enumerate(bits(values).tolist()):
        half = rest[count * raw + i // 2] >> 4 * (i % 2) & 15
        turned = planes[0][i] << 4 | half
        for byte in reversed(rest[i * raw : (i + 1) * raw]):
            turned = turned << 8 | byte
        assert (turned >> 1 | (turned & 1) << 8 * size - 1) == number % 2 ** (8 * size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_that_thin_out_take_less_than_their_exponents_say(dtype):
    values = thinning(60_000, dtype)
    width = {torch.float32: 23, torch.bfloat16: 7}[dtype]
    exponents = bits(values).long() >> width & 255
    bound = len(values) * (entropy(exponents) + width + 1) / 8
    held = sum(part.nbytes for part in check(values))
    assert held < bound - 0.5 * len(values) / 8
    digits = (bits(values).long() << 1) % 2 ** (8 * dtype.itemsize) >> 8 * dtype.itemsize - 12
    left = 8 * dtype.itemsize - 12
    assert held < 1.001 * len(values) * (entropy(digits) + left) / 8 + 500


def test_what_gains_little_is_not_wide():
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        values = gaussian(60_000).mul(1000).to(dtype)
        assert Reference(check(values)[0].numpy().tobytes()).uniform(64) == DTYPES.index(dtype)


def test_thousands_of_rare_digits_leave_room_for_the_others():
    # 1,500 common digits, and 2,500 that come once in a million
    spread = torch.randperm(4_096, generator=torch.Generator().manual_seed(0))
    digits = torch.cat([spread[:1_500].repeat(700), spread[1_500:4_000]])
    turned = (digits << 4).to(torch.int32)
    values = (turned >> 1 | (turned & 1) << 15).to(torch.uint16).view(torch.bfloat16)
    message, _ = check(values)
    assert Reference(message.numpy().tobytes()).uniform(64) == 33


def test_golden_bytes_of_wide_values():
    steps = (torch.arange(6000) ** 2 % 8191).to(torch.float32)
    numbers = (1 + (steps / 8192) ** 3) * 0.5
    parts = check(numbers), check(numbers.double())
    assert [part.nbytes for pair in parts for part in pair] == [2432, 15000, 4656, 12000]
    joined = b"".join(part.numpy().tobytes() for pair in parts for part in pair)
    assert hashlib.sha256(joined).hexdigest()[:16] == "0f4163922bfd3123"


def test_golden_bytes():
    values = torch.tensor([0.5, -0.5, 0.75, 1.0, -0.0] * 40)
    message, rest = check(values)
    assert rest.numel() == 0
    assert hashlib.sha256(message.numpy().tobytes()).hexdigest()[:16] == "e21c79398b394109"
    numbers = (torch.arange(4096) ** 2 % 8191 - 4095).to(torch.float32) * 2**-12
    parts = check(numbers), check(numbers.bfloat16())
    joined = b"".join(part.numpy().tobytes() for pair in parts for part in pair)
    assert hashlib.sha256(joined).hexdigest()[:16] == "849e43236d3d101f"
    assert [part.nbytes for pair in parts for part in pair] == [3020, 4096, 1064, 4096]


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_codec_is_its_inner_one_with_other_values(name):
    mask = torch.arange(4096).reshape(64, 64) % 2 == 0
    weight = gaussian(4096).reshape(64, 64)
    codec = CODECS[name]
    inner = CODECS[name.removeprefix("packed-")]
    parts, plain = codec.encode(weight, mask), inner.encode(weight, mask)
    assert set(parts) == set(codec.parts)
    assert sum(part.nbytes for part in parts.values()) < 0.9 * sum(
        part.nbytes for part in plain.values()
    )
    assert codec.sparse == inner.sparse
    assert not is_plain(codec)
    kept = codec.decode_mask(parts, shape=(64, 64))
    assert kept is None if not codec.sparse else torch.equal(kept, mask)
    back = codec.decode(parts, shape=(64, 64), dtype=torch.float32)
    assert same_bits(back, weight.masked_fill(~mask, 0.0))
    for part in parts:
        with pytest.raises(ArtifactError):
            codec.decode({k: v for k, v in parts.items() if k != part}, shape=(64, 64),
                         dtype=torch.float32)  # fmt: skip


@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_comes_close_to_the_bound_of_masks_and_exponents(density, dtype):
    weight = gaussian(256 * 256, dtype).reshape(256, 256)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(256, 256, generator=generator) < density
    kept, auto = int(mask.sum()), FORMATS["auto"]
    codec, parts = auto.encode(auto.choose((256, 256), kept, dtype), weight, mask)
    assert codec.name == "packed-coded"
    width = {torch.float32: 23, torch.bfloat16: 7}[dtype]
    exponents = bits(weight)[mask].long() >> width & 255
    bound = (entropy_bits(mask.numel(), kept) + kept * (entropy(exponents) + width + 1)) / 8
    held = sum(part.nbytes for part in parts.values())
    assert held < 1.01 * bound + 100
    assert held <= auto.nbytes((256, 256), kept, dtype)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 40), columns=st.integers(1, 40), seed=st.integers(0, 2**31),
    dtype=st.sampled_from(DTYPES), density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    noise=st.booleans(),
)  # fmt: skip
def test_auto_is_exact_and_never_larger_than_it_promised(
    rows, columns, seed, dtype, density, noise
):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    weight = any_bits(rows * columns, dtype, seed).reshape(rows, columns)
    if not noise and dtype.is_floating_point:
        weight = gaussian(rows * columns, dtype, seed).reshape(rows, columns)
    auto, kept = FORMATS["auto"], int(mask.sum())
    codec, parts = auto.encode(auto.choose((rows, columns), kept, dtype), weight, mask)
    held = sum(part.nbytes for part in parts.values())
    assert held <= auto.nbytes((rows, columns), kept, dtype)
    back = codec.decode(parts, shape=(rows, columns), dtype=dtype)
    assert torch.equal(bits(back), bits(weight).masked_fill(~mask, 0))
    assert codec.sparse or kept == mask.numel()  # a sparse format always tells what was kept


def test_what_cannot_be_packed_stays_as_it_was():
    weight = torch.ones(64, 64, dtype=torch.complex64)
    assert not can_encode(weight.dtype)
    auto, mask = FORMATS["auto"], torch.ones(64, 64, dtype=torch.bool)
    assert auto.encode(CODECS["dense"], weight, mask)[0].name == "dense"
    with pytest.raises(ArtifactError, match="cannot be packed"):
        encode_planes(weight.reshape(-1))


def test_what_describes_no_wide_values_is_refused():
    message, rest = encode_planes(thinning(501, torch.bfloat16))
    for odd in (rest[:-1], rest[:0], torch.cat([rest, rest[:1]])):
        with pytest.raises(ArtifactError, match=r"0\.5 raw bytes each"):
            decode_planes(message, odd, 501, torch.bfloat16)
    set_behind = rest.clone()
    set_behind[-1] |= 0x10
    with pytest.raises(ArtifactError, match="half a byte set"):
        decode_planes(message, set_behind, 501, torch.bfloat16)
    for dtype in (torch.int8, torch.float16):  # a byte has no wide first digit
        with pytest.raises(ArtifactError, match=r"holds values of torch.bfloat16"):
            decode_planes(message, rest, 501, dtype)
    raw_first = constriction.stream.queue.RangeEncoder()
    raw_first.encode(np.array([33], dtype=np.int32), constriction.stream.model.Uniform(64))
    raw_first.encode(np.zeros(2, dtype=np.int32), constriction.stream.model.Uniform(2))
    words = torch.from_numpy(np.asarray(raw_first.get_compressed()).view(np.uint8).copy())
    with pytest.raises(ArtifactError, match="not coded"):
        decode_planes(words, rest, 501, torch.bfloat16)


def test_what_describes_no_such_values_is_refused():
    values = gaussian(500)
    message, rest = encode_planes(values)
    for odd in (message.float(), message[None], message[:-1]):
        with pytest.raises(ArtifactError, match=r"not in bytes|no words"):
            decode_planes(odd, rest, 500, torch.float32)
    for count, dtype in ((499, torch.float32), (501, torch.float32), (500, torch.int32)):
        with pytest.raises(ArtifactError):
            decode_planes(message, rest, count, dtype)
    for odd in (rest[:-1], rest[:0], torch.cat([rest, rest]), rest.float()):
        with pytest.raises(ArtifactError, match=r"raw bytes|not in bytes"):
            decode_planes(message, odd, 500, torch.float32)
    with pytest.raises(ArtifactError, match="more coded values"):
        decode_planes(torch.cat([message, message]), rest, 500, torch.float32)
    with pytest.raises(ArtifactError, match=r"holds values of torch.float32 where torch.int32"):
        decode_planes(message, rest, 500, torch.int32)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    data=st.binary(max_size=96), rest=st.binary(max_size=40), count=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_any_bytes_give_so_many_values_or_an_error(data, rest, count, dtype):
    message, raw = (
        torch.tensor(list(part), dtype=torch.uint8) for part in (data[: len(data) // 4 * 4], rest)
    )
    with contextlib.suppress(ArtifactError):
        values = decode_planes(message, raw, count, dtype)
        assert values.shape == (count,)
        assert values.dtype is dtype


@settings(max_examples=100, deadline=None, derandomize=True)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_other_values_or_an_error(place, bit):
    message, rest = encode_planes(gaussian(200))
    changed = message.clone()
    changed[place % len(message)] ^= 1 << bit
    with contextlib.suppress(ArtifactError):
        assert len(decode_planes(changed, rest, 200, torch.float32)) == 200


def test_a_mask_is_the_same_part_packed_or_not():
    mask = torch.arange(4096).reshape(64, 64) % 7 == 0
    parts = CODECS["packed-coded"].encode(gaussian(4096).reshape(64, 64), mask)
    assert torch.equal(parts["mask"], encode_masks([mask]))
    assert math.prod(parts["rest"].shape) == 3 * int(mask.sum())
