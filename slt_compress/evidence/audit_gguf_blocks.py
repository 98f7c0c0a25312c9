"""The blocks of GGUF: so many bytes for so many weights, and what the bytes mean.

The layouts are those of ggml's `ggml-common.h` (MIT), written down from its structs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One way to store weights; `decode` takes uint8 [blocks, nbytes] to [blocks, weights]."""

    name: str
    weights: int
    nbytes: int
    decode: Callable[[Array], Array]


def _half(data: Array, at: int) -> Array:
    """The float16 at a place of every block, as a column."""
    return np.ascontiguousarray(data[:, at : at + 2]).view("<f2").astype(np.float32)


def _low_high(data: Array) -> Array:
    """The low halves of all bytes, then the high ones."""
    return np.concatenate([data & 15, data >> 4], axis=1)


def _fifth(data: Array) -> Array:
    """Thirty-two bits of four bytes, the lowest first, as the value 16 or 0."""
    return np.unpackbits(data, axis=1, bitorder="little") << 4


def _q4_0(data: Array) -> Array:
    return _half(data, 0) * (_low_high(data[:, 2:]).astype(np.float32) - 8)


def _q4_1(data: Array) -> Array:
    return _half(data, 0) * _low_high(data[:, 4:]) + _half(data, 2)


def _q5_0(data: Array) -> Array:
    codes = _low_high(data[:, 6:]) | _fifth(data[:, 2:6])
    return _half(data, 0) * (codes.astype(np.float32) - 16)


def _q5_1(data: Array) -> Array:
    return _half(data, 0) * (_low_high(data[:, 8:]) | _fifth(data[:, 4:8])) + _half(data, 2)


def _q8_0(data: Array) -> Array:
    return _half(data, 0) * data[:, 2:].view(np.int8)


_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32)


def _mxfp4(data: Array) -> Array:
    """A power of two for 32 numbers of four bits, kept doubled so that they are whole."""
    scale = np.ldexp(np.float32(1), data[:, :1].astype(np.int32) - 128)
    return scale * _E2M1[_low_high(data[:, 1:])]


def _nvfp4(data: Array) -> Array:
    """Four groups of 16 numbers as `_mxfp4` has them, each with an unsigned float8 as its scale."""
    exponent, mantissa = (data[:, :4] >> 3 & 15).astype(np.int32), data[:, :4] & 7
    fraction = np.where(exponent == 0, mantissa, mantissa + np.float32(8))
    scale = np.ldexp(fraction, np.maximum(exponent, 1) - 11).astype(np.float32)
    scale[data[:, :4] == 127] = 0
    codes = data[:, 4:].reshape(len(data), 4, 8)
    numbers = _E2M1[np.concatenate([codes & 15, codes >> 4], axis=2)]
    values: Array = (scale[:, :, None] * numbers).reshape(len(data), 64)
    return values


# Sixteen levels for what is spread like a Gaussian; none of them is 0.
_UNEVEN = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


def _iq4_nl(data: Array) -> Array:
    return _half(data, 0) * _UNEVEN[_low_high(data[:, 2:])]


def _iq4_xs(data: Array) -> Array:
    """Eight groups of 32 levels, each with a scale of six bits in two parts."""
    high = np.ascontiguousarray(data[:, 2:4]).view("<u2") >> 2 * np.arange(8, dtype=np.uint16) & 3
    low = np.stack([data[:, 4:8] & 15, data[:, 4:8] >> 4], axis=2).reshape(len(data), 8)
    scale = _half(data, 0) * ((low | high << 4).astype(np.float32) - 32)
    codes = data[:, 8:].reshape(len(data), 8, 16)
    levels = _UNEVEN[np.concatenate([codes & 15, codes >> 4], axis=2)]
    values: Array = (scale[:, :, None] * levels).reshape(len(data), 256)
    return values


def _tq1_0(data: Array) -> Array:
    """Five digits of base three in a byte: 160 by 32 bytes, 80 by 16, and 16 by four bytes."""
    parts = []
    for start, width, digits in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
        powers = (3 ** np.arange(digits)).astype(np.uint8)[None, :, None]
        turned = (data[:, None, start : start + width] * powers).astype(np.uint16)
        parts.append((turned * 3 >> 8).reshape(len(data), -1))
    return _half(data, 52) * (np.concatenate(parts, axis=1).astype(np.float32) - 1)


def _tq2_0(data: Array) -> Array:
    return _half(data, 64) * (_two_bits(data[:, :64]).astype(np.float32) - 1)


def _bf16(data: Array) -> Array:
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_k(data: Array) -> Array:
    """Eight groups of 32, each with a scale and a minimum of six bits."""
    scale, least = _six_bits(data[:, 4:16])
    pairs = data[:, 16:].reshape(len(data), 4, 32)
    codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(data), 8, 32)
    return _with_minimum(data, scale, least, codes)


def _q5_k(data: Array) -> Array:
    """As `_q4_k`, with a fifth bit of every code in 32 bytes."""
    scale, least = _six_bits(data[:, 4:16])
    pairs = data[:, 48:].reshape(len(data), 4, 32)
    codes = np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(data), 8, 32)
    places = np.arange(8, dtype=np.uint8)[None, :, None]
    fifth = (data[:, None, 16:48] >> places & 1) << 4
    return _with_minimum(data, scale, least, codes | fifth)


def _with_minimum(data: Array, scale: Array, least: Array, codes: Array) -> Array:
    factor = (_half(data, 0) * scale)[:, :, None]
    minimum = (_half(data, 2) * least)[:, :, None]
    values: Array = (factor * codes - minimum).reshape(len(data), 256)
    return values


def _six_bits(packed: Array) -> tuple[Array, Array]:
    """Eight scales and eight minima of six bits out of twelve bytes."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    least = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return scale, least


def _q6_k(data: Array) -> Array:
    """Sixteen groups of 16, each with a scale of eight bits; codes of six bits in two parts."""
    low = data[:, :128].reshape(len(data), 2, 64)
    high = data[:, 128:192].reshape(len(data), 2, 1, 32)
    codes = np.concatenate([low & 15, low >> 4], axis=2).reshape(len(data), 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    codes = (codes | (high >> shifts & 3) << 4).astype(np.int32) - 32
    scale = data[:, 192:208].view(np.int8).astype(np.float32)
    whole = codes.reshape(len(data), 16, 16) * (_half(data, 208) * scale)[:, :, None]
    values: Array = whole.reshape(len(data), 256)
    return values


def _q2_k(data: Array) -> Array:
    """Sixteen groups of 16, each with a scale and a minimum of four bits; codes of two bits."""
    scale = (_half(data, 80) * (data[:, :16] & 15))[:, :, None]
    least = (_half(data, 82) * (data[:, :16] >> 4))[:, :, None]
    codes = _two_bits(data[:, 16:80]).reshape(len(data), 16, 16)
    values: Array = (scale * codes - least).reshape(len(data), 256)
    return values


def _q3_k(data: Array) -> Array:
    """Sixteen groups of 16, each with a scale of six bits; codes of two bits and one apart."""
    packed = data[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, :, None]
    high = (packed[:, None, 8:] >> shifts & 3).reshape(len(data), 16)
    scale = _half(data, 108) * ((low | high << 4).astype(np.float32) - 32)
    places = np.arange(8, dtype=np.uint8)[None, :, None]
    apart = (data[:, None, :32] >> places & 1).reshape(len(data), 256)
    codes = _two_bits(data[:, 32:96]).astype(np.int32) - 4 * (1 - apart.astype(np.int32))
    values: Array = (scale[:, :, None] * codes.reshape(len(data), 16, 16)).reshape(len(data), 256)
    return values


def _two_bits(packed: Array) -> Array:
    """256 codes out of two halves of 32 bytes, each half four times over."""
    halves = packed.reshape(len(packed), 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    return (halves >> shifts & 3).reshape(len(packed), 256)


# by ggml's number of the type
BLOCKS: Mapping[int, Block] = MappingProxyType(
    {
        0: Block(name="F32", weights=1, nbytes=4, decode=lambda data: data.view("<f4")),
        1: Block(name="F16", weights=1, nbytes=2, decode=lambda data: data.view("<f2")),
        30: Block(name="BF16", weights=1, nbytes=2, decode=_bf16),
        28: Block(name="F64", weights=1, nbytes=8, decode=lambda data: data.view("<f8")),
        2: Block(name="Q4_0", weights=32, nbytes=18, decode=_q4_0),
        3: Block(name="Q4_1", weights=32, nbytes=20, decode=_q4_1),
        6: Block(name="Q5_0", weights=32, nbytes=22, decode=_q5_0),
        7: Block(name="Q5_1", weights=32, nbytes=24, decode=_q5_1),
        8: Block(name="Q8_0", weights=32, nbytes=34, decode=_q8_0),
        39: Block(name="MXFP4", weights=32, nbytes=17, decode=_mxfp4),
        40: Block(name="NVFP4", weights=64, nbytes=36, decode=_nvfp4),
        20: Block(name="IQ4_NL", weights=32, nbytes=18, decode=_iq4_nl),
        23: Block(name="IQ4_XS", weights=256, nbytes=136, decode=_iq4_xs),
        34: Block(name="TQ1_0", weights=256, nbytes=54, decode=_tq1_0),
        35: Block(name="TQ2_0", weights=256, nbytes=66, decode=_tq2_0),
        10: Block(name="Q2_K", weights=256, nbytes=84, decode=_q2_k),
        11: Block(name="Q3_K", weights=256, nbytes=110, decode=_q3_k),
        12: Block(name="Q4_K", weights=256, nbytes=144, decode=_q4_k),
        13: Block(name="Q5_K", weights=256, nbytes=176, decode=_q5_k),
        14: Block(name="Q6_K", weights=256, nbytes=210, decode=_q6_k),
    }
)


def block_of(kind: int) -> Block | None:
    """The layout of a type; that of a type with a grid comes from the package gguf, if it is there.

    None where neither knows the type.
    """
    known = BLOCKS.get(kind)
    if known is not None:
        return known
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

        named = GGMLQuantizationType(kind)
    except (ImportError, ValueError):
        return None
    weights, nbytes = GGML_QUANT_SIZES[named]

    def decode(data: Array) -> Array:
        values: Array = quants.dequantize(data, named)
        return values

    return Block(name=str(named.name), weights=weights, nbytes=nbytes, decode=decode)
