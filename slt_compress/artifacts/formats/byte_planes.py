"""Numbers split into planes of digits; what a plane's histogram leaves out is not stored.

The exponents of trained weights are few: of the eight bits of an exponent about two and a half
carry something, and fewer under a magnitude mask. There the first bits of the mantissa carry less
than they take, too, as weights thin out above the threshold: a first digit of twelve bits holds
both. The low bytes of a float32 that was a bfloat16 carry nothing. The rest is noise, and is stored
as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import constriction
import numpy as np
import torch
from torch import Tensor

from slt_compress.artifacts.formats.histograms import (
    BYTE,
    Histogram,
    Plane,
    decode_plane,
    encode_plane,
    fit,
    uniform,
)
from slt_compress.errors import ArtifactError
from slt_compress.storage.bits import bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_WIDE = (12, 4)  # bits of the first two digits of a wide number, instead of 8 and 8
_WIDE_GAIN = 0.99  # numbers are wide where they then take at most this share: it takes time too
_KINDS = 64
_WIDE_KINDS = 32  # so much is added to the kind of wide numbers
# By its place here a message says what its numbers are; what comes later goes to the end.
_DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


# Each plane, and its histogram where it is coded.
_Coding = list[tuple[Plane, Histogram | None]]


def can_encode(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype can be packed."""
    return dtype in _DTYPES


def encode_planes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Split [n] numbers into coded planes and raw ones.

    Returns:
        uint8 [4 * words], one message of the range coder, and uint8, the raw planes: the bytes of a
        number side by side, the lowest first, and then half bytes. Nothing of a number is lost, not
        even NaN payloads.

    Raises:
        ArtifactError: numbers of this dtype cannot be packed.
    """
    if not can_encode(values.dtype):
        raise ArtifactError(f"weights of {values.dtype} cannot be packed; use another format")
    kind = _DTYPES.index(values.dtype)
    coding = _best_planes(values)
    wide = coding[0][0].width > BYTE
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(np.array([kind + wide * _WIDE_KINDS], dtype=np.int32), uniform(_KINDS))
    raw = []
    for plane, histogram in coding:
        coder.encode(np.array([histogram is not None], dtype=np.int32), uniform(2))
        if histogram is None:
            raw.append(plane)
        else:
            encode_plane(coder, plane, histogram)
    words = np.asarray(coder.get_compressed(), dtype="<u4")
    return torch.from_numpy(words.view(np.uint8).copy()), torch.from_numpy(_raw_bytes(raw))


def decode_planes(message: Tensor, rest: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Undo `encode_planes` for `count` numbers, a count that comes from a mask or a shape.

    Raises:
        ArtifactError: the two do not describe so many numbers of this dtype.
    """
    for part in (message, rest):
        if part.dtype is not torch.uint8 or part.dim() != 1:
            raise ArtifactError(f"has values in {tuple(part.shape)} {part.dtype}, not in bytes")
    if len(message) % 4:
        raise ArtifactError(f"has {len(message):,} bytes of coded values, which are no words")
    words = message.numpy().view("<u4").astype(np.uint32)
    coder = constriction.stream.queue.RangeDecoder(words)
    try:
        kind = int(coder.decode(uniform(_KINDS)))
        wide, place = divmod(kind, _WIDE_KINDS)
        if dtype not in _DTYPES[place : place + 1] or (wide and dtype.itemsize < len(_WIDE)):
            stated = str(_DTYPES[place]) if place < len(_DTYPES) else f"kind {kind}"
            raise ArtifactError(f"holds values of {stated} where {dtype} is expected")
        widths = _widths(dtype.itemsize, wide=bool(wide))
        coded = [decode_plane(coder, count, width) for width in widths]
        whole = bool(coder.maybe_exhausted())
    except (AssertionError, ValueError, RuntimeError) as cause:
        raise ArtifactError(f"has values that cannot be decoded ({cause})") from cause
    if not whole:
        raise ArtifactError("has more coded values than its mask keeps")
    if wide and coded[0] is None:
        raise ArtifactError("has values of a wide first digit that is not coded")
    return _joined(_filled(coded, widths, rest.numpy(), count), widths, dtype)


def _widths(size: int, *, wide: bool) -> tuple[int, ...]:
    """Bits of the digits of a number of so many bytes, the highest first."""
    return (*_WIDE, *[BYTE] * (size - len(_WIDE))) if wide else (BYTE,) * size


def _best_planes(values: Tensor) -> _Coding:
    """The planes that take least, wide ones where that is worth it, and how each is coded."""
    size, turned = values.dtype.itemsize, _turned(values)
    plain = _coding(turned, _widths(size, wide=False))
    if size < len(_WIDE):
        return plain
    wide = _coding(turned, _widths(size, wide=True))
    coded = wide[0][1] is not None
    return wide if coded and _total(wide) < _WIDE_GAIN * _total(plain) else plain


def _coding(turned: NDArray[Any], widths: Sequence[int]) -> _Coding:
    return [(plane, fit(plane)) for plane in _planes(turned, widths)]


def _total(coding: _Coding) -> float:
    return sum(
        plane.raw_bits if histogram is None else histogram.bits for plane, histogram in coding
    )


def _turned(values: Tensor) -> NDArray[Any]:
    """Every number turned left by one bit, as unsigned integers of its own width.

    So the sign becomes the lowest bit, and the first byte of a float32 or bfloat16 its exponent.
    """
    size = values.dtype.itemsize
    plain = bits(values).numpy().view(_UNSIGNED[size])
    return (plain << 1) | (plain >> (8 * size - 1))


def _planes(turned: NDArray[Any], widths: Sequence[int]) -> list[Plane]:
    """The digits of all numbers, the highest first."""
    planes, below = [], sum(widths)
    for width in widths:
        below -= width
        kind = np.uint16 if width > BYTE else np.uint8
        digits = ((turned >> below) & turned.dtype.type((1 << width) - 1)).astype(kind)
        planes.append(Plane(width=width, digits=digits))
    return planes


def _raw_bytes(planes: Sequence[Plane]) -> NDArray[Any]:
    """Bytes of a number side by side, the lowest first; then half bytes, two in one."""
    whole = [plane.digits for plane in planes if plane.width == BYTE]
    rest = np.stack(whole[::-1], axis=1).reshape(-1) if whole else np.zeros(0, dtype=np.uint8)
    for plane in planes:
        if plane.width < BYTE:
            even = np.append(plane.digits, np.zeros(len(plane.digits) % 2, dtype=np.uint8))
            rest = np.append(rest, even[::2] | (even[1::2] << 4))
    return rest


def _filled(
    coded: Sequence[NDArray[Any] | None], widths: Sequence[int], rest: NDArray[Any], count: int
) -> list[NDArray[Any]]:
    """All planes: the raw ones from the bytes that `_raw_bytes` made."""
    raw = [width for plane, width in zip(coded, widths, strict=True) if plane is None]
    whole, half = raw.count(BYTE), BYTE // 2 in raw
    if len(rest) != count * whole + (count + 1) // 2 * half:
        each = f"{whole + half / 2:g} raw bytes each"
        raise ArtifactError(f"has {len(rest):,} raw bytes for {count:,} values with {each}")
    table, pairs = rest[: count * whole].reshape(count, whole), rest[count * whole :]
    halves = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)
    if half and halves[count:].any():
        raise ArtifactError("has half a byte set behind its last value")
    columns = iter(reversed(range(whole)))
    return [
        plane
        if plane is not None
        else (table[:, next(columns)] if width == BYTE else halves[:count])
        for plane, width in zip(coded, widths, strict=True)
    ]


def _joined(planes: Sequence[NDArray[Any]], widths: Sequence[int], dtype: torch.dtype) -> Tensor:
    size = dtype.itemsize
    table = np.empty((len(planes[0]), size), dtype=np.uint8)
    if widths[0] > BYTE:
        first, second, *others = planes
        planes = [first >> 4, (first << 4).astype(np.uint8) | second, *others]
    for place, plane in zip(reversed(range(size)), planes, strict=True):
        table[:, place] = plane
    turned = table.reshape(-1).view(np.dtype(_UNSIGNED[size]).newbyteorder("<"))
    turned = turned.astype(_UNSIGNED[size], copy=False)
    plain = (turned >> 1) | (turned << (8 * size - 1))
    return torch.from_numpy(plain.view(np.uint8)).view(dtype)


def message_slack() -> int:
    """Bytes that a message takes at most where no plane is coded: a word, and one to end with."""
    return 8
