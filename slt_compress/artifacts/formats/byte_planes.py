"""Numbers split into planes of bytes; what a plane's histogram leaves out is not stored.

The exponents of trained weights are few: of the eight bits of an exponent about two and a half
carry something, and fewer under a magnitude mask. The low bytes of a float32 that was a bfloat16
carry nothing. Mantissas and signs are noise, and are stored as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import constriction
import numpy as np
import torch
from torch import Tensor

from slt_compress.errors import ArtifactError
from slt_compress.storage.bits import bits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_WHOLE = 1 << 16  # the probability 1
_BYTES = 256
_WORTH = 0.9  # a plane is coded where it then takes at most this share: decoding takes time
_CHUNK = 1 << 22  # numbers at a time, where each takes several bytes more
_KINDS = 64
# By its place here a message says what its numbers are; what comes later goes to the end.
_DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Histogram:
    """The bytes of a plane, in rising order, and their frequencies, which sum to 65,536."""

    present: NDArray[Any]
    frequencies: NDArray[Any]

    def model(self) -> Any:
        """What the range coder takes. The shares are exact in float64, and so are their sums."""
        return constriction.stream.model.Categorical(self.frequencies / _WHOLE, perfect=False)


def can_encode(dtype: torch.dtype) -> bool:
    """Whether numbers of this dtype can be packed."""
    return dtype in _DTYPES


def encode_planes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Split [n] numbers into coded planes and raw ones.

    Returns:
        uint8 [4 * words], one message of the range coder, and uint8 [n * raw planes], the bytes of
        a number side by side, the lowest first. Nothing of a number is lost, not even NaN payloads.

    Raises:
        ArtifactError: numbers of this dtype cannot be packed.
    """
    if not can_encode(values.dtype):
        raise ArtifactError(f"weights of {values.dtype} cannot be packed; use another format")
    planes = _planes(values)
    coder = constriction.stream.queue.RangeEncoder()
    kind = _DTYPES.index(values.dtype)
    coder.encode(np.array([kind], dtype=np.int32), _uniform(_KINDS))
    raw = []
    for plane in planes:
        histogram = _fit(plane)
        coder.encode(np.array([histogram is not None], dtype=np.int32), _uniform(2))
        if histogram is None:
            raw.append(plane)
            continue
        _encode_plane(coder, plane, histogram)
    words = np.asarray(coder.get_compressed(), dtype="<u4")
    rest = np.stack(raw[::-1], axis=1) if raw else np.zeros(0, dtype=np.uint8)
    return torch.from_numpy(words.view(np.uint8).copy()), torch.from_numpy(rest.reshape(-1))


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
        kind = int(coder.decode(_uniform(_KINDS)))
        if dtype not in _DTYPES[kind : kind + 1]:
            stated = str(_DTYPES[kind]) if kind < len(_DTYPES) else f"kind {kind}"
            raise ArtifactError(f"holds values of {stated} where {dtype} is expected")
        coded = [_decode_plane(coder, count) for _ in range(dtype.itemsize)]
        whole = bool(coder.maybe_exhausted())
    except (AssertionError, ValueError, RuntimeError) as cause:
        raise ArtifactError(f"has values that cannot be decoded ({cause})") from cause
    if not whole:
        raise ArtifactError("has more coded values than its mask keeps")
    raw = [place for place, plane in enumerate(coded) if plane is None]
    if len(rest) != count * len(raw):
        raise ArtifactError(
            f"has {len(rest):,} raw bytes for {count:,} values with {len(raw)} raw bytes each"
        )
    return _joined(coded, rest.numpy().reshape(count, len(raw)), count, dtype)


def _planes(values: Tensor) -> list[NDArray[Any]]:
    """The bytes of all numbers, the highest first, once every number was turned left by one bit.

    So the sign becomes the lowest bit, and the first plane of a float32 or bfloat16 its exponent.
    """
    size = values.dtype.itemsize
    plain = bits(values).numpy().view(_UNSIGNED[size])
    turned = (plain << 1) | (plain >> (8 * size - 1))
    table = turned.astype(turned.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, size)
    return [table[:, place] for place in reversed(range(size))]


def _joined(
    coded: Sequence[NDArray[Any] | None], rest: NDArray[Any], count: int, dtype: torch.dtype
) -> Tensor:
    size = dtype.itemsize
    table = np.empty((count, size), dtype=np.uint8)
    columns = iter(reversed(range(rest.shape[1])))
    for place, plane in zip(reversed(range(size)), coded, strict=True):
        table[:, place] = rest[:, next(columns)] if plane is None else plane
    turned = table.reshape(-1).view(np.dtype(_UNSIGNED[size]).newbyteorder("<"))
    turned = turned.astype(_UNSIGNED[size], copy=False)
    plain = (turned >> 1) | (turned << (8 * size - 1))
    return torch.from_numpy(plain.view(np.uint8)).view(dtype)


def _encode_plane(coder: Any, plane: NDArray[Any], histogram: _Histogram) -> None:
    present, frequencies = histogram.present, histogram.frequencies
    low, high = int(present[0]), int(present[-1])
    coder.encode(np.array([low, high - low], dtype=np.int32), _uniform(_BYTES))
    held = np.isin(np.arange(low, high + 1), present)
    coder.encode(held.astype(np.int32), _uniform(2))
    coder.encode(frequencies.astype(np.int32), _uniform(_WHOLE + 1))
    if len(present) == 1:
        return
    places = np.zeros(_BYTES, dtype=np.int32)
    places[present] = np.arange(len(present))
    model = histogram.model()
    for part in _chunks(plane):
        coder.encode(places[part], model)


def _decode_plane(coder: Any, count: int) -> NDArray[Any] | None:
    """The next plane of the message; None for a raw one."""
    if not int(coder.decode(_uniform(2))):
        return None
    low, span = (int(number) for number in coder.decode(_uniform(_BYTES), 2))
    present = low + coder.decode(_uniform(2), span + 1).nonzero()[0]
    frequencies = coder.decode(_uniform(_WHOLE + 1), len(present)).astype(np.int64)
    if low + span >= _BYTES or int(frequencies.sum()) != _WHOLE:
        raise ArtifactError("has values with a histogram that is none")
    if len(present) == 1:
        return np.full(count, present[0], dtype=np.uint8)
    model = _Histogram(present=present, frequencies=frequencies).model()
    plane, table = np.empty(count, dtype=np.uint8), present.astype(np.uint8)
    for part in _chunks(plane):
        part[:] = table[coder.decode(model, len(part))]
    return plane


def _fit(plane: NDArray[Any]) -> _Histogram | None:
    """The histogram of a plane; None where coding by it saves too little."""
    counts = np.zeros(_BYTES, dtype=np.int64)
    for part in _chunks(plane):
        counts += np.bincount(part, minlength=_BYTES)
    present = counts.nonzero()[0]
    if not len(present) or _coded_bits(counts) > _WORTH * 8 * len(plane):
        return None
    return _Histogram(present=present, frequencies=_rounded(counts[present]))


def _coded_bits(counts: NDArray[Any]) -> float:
    """Bits of a plane with these counts, and of what describes them."""
    present = counts.nonzero()[0]
    shares = counts[present] / counts.sum()
    side = 17 * len(present) + int(present[-1] - present[0]) + 17
    return float(-(counts[present] * np.log2(shares)).sum()) + side


def _rounded(counts: NDArray[Any]) -> NDArray[Any]:
    """Counts as 65,536ths that sum to 65,536: none becomes 0, and the largest takes the rest."""
    shares = np.maximum(counts * _WHOLE // int(counts.sum()), 1)
    shares[int(shares.argmax())] += _WHOLE - int(shares.sum())
    rounded: NDArray[Any] = shares
    return rounded


def _chunks(plane: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of a plane, one after the other."""
    for start in range(0, len(plane), _CHUNK):
        yield plane[start : start + _CHUNK]


def _uniform(size: int) -> Any:
    return constriction.stream.model.Uniform(size)


def message_slack() -> int:
    """Bytes that a message takes at most where no plane is coded: a word, and one to end with."""
    return 8
