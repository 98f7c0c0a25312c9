"""Digits coded by their histogram: what the range coder is told of a plane, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import constriction
import numpy as np

from slt_compress.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BYTE = 8
_WHOLE = 1 << 16  # the probability 1
_WORTH = 0.9  # a plane is coded where it then takes at most this share: decoding takes time
_CHUNK = 1 << 22  # numbers at a time, where each takes several bytes more


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """The same digit of all numbers, of so many bits."""

    width: int
    digits: NDArray[Any]

    @property
    def raw_bits(self) -> int:
        """Of the plane as it is."""
        return self.width * len(self.digits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """The digits of a plane, in rising order, and their frequencies, which sum to 65,536.

    `bits` is what the plane takes with it, itself included.
    """

    present: NDArray[Any]
    frequencies: NDArray[Any]
    bits: float


def encode_plane(coder: Any, plane: Plane, histogram: Histogram) -> None:
    """Tell the coder what digits a plane has, how often, and which comes where."""
    present, frequencies = histogram.present, histogram.frequencies
    low, high = int(present[0]), int(present[-1])
    coder.encode(np.array([low, high - low], dtype=np.int32), uniform(1 << plane.width))
    held = np.isin(np.arange(low, high + 1), present)
    coder.encode(held.astype(np.int32), uniform(2))
    coder.encode(frequencies.astype(np.int32), uniform(_WHOLE + 1))
    if len(present) == 1:
        return
    places = np.zeros(1 << plane.width, dtype=np.int32)
    places[present] = np.arange(len(present))
    model = _model(frequencies)
    for part in _chunks(plane.digits):
        coder.encode(places[part], model)


def decode_plane(coder: Any, count: int, width: int) -> NDArray[Any] | None:
    """The next plane of the message; None for a raw one."""
    if not int(coder.decode(uniform(2))):
        return None
    low, span = (int(number) for number in coder.decode(uniform(1 << width), 2))
    present = low + coder.decode(uniform(2), span + 1).nonzero()[0]
    frequencies = coder.decode(uniform(_WHOLE + 1), len(present)).astype(np.int64)
    if low + span >= 1 << width or int(frequencies.sum()) != _WHOLE:
        raise ArtifactError("has values with a histogram that is none")
    kind = np.uint16 if width > BYTE else np.uint8
    if len(present) == 1:
        return np.full(count, present[0], dtype=kind)
    model = _model(frequencies)
    plane, table = np.empty(count, dtype=kind), present.astype(kind)
    for part in _chunks(plane):
        part[:] = table[coder.decode(model, len(part))]
    return plane


def fit(plane: Plane) -> Histogram | None:
    """The histogram of a plane; None where coding by it saves too little."""
    counts = np.zeros(1 << plane.width, dtype=np.int64)
    for part in _chunks(plane.digits):
        counts += np.bincount(part, minlength=len(counts))
    present = counts.nonzero()[0]
    if not len(present):
        return None
    held = _coded_bits(counts, plane.width)
    if held > _WORTH * plane.raw_bits:
        return None
    return Histogram(present=present, frequencies=_rounded(counts[present]), bits=held)


def _coded_bits(counts: NDArray[Any], width: int) -> float:
    """Bits of a plane with these counts, and of what describes them."""
    present = counts.nonzero()[0]
    shares = counts[present] / counts.sum()
    side = 17 * len(present) + int(present[-1] - present[0]) + 2 * width + 1
    return float(-(counts[present] * np.log2(shares)).sum()) + side


def _rounded(counts: NDArray[Any]) -> NDArray[Any]:
    """Counts as 65,536ths that sum to 65,536: none becomes 0, and the largest takes the rest."""
    shares = np.maximum(counts * _WHOLE // int(counts.sum()), 1)
    if int(shares.sum()) - _WHOLE >= int(shares.max()):  # thousands of rare digits took too much
        shares = counts * (_WHOLE - len(counts)) // int(counts.sum()) + 1
    shares[int(shares.argmax())] += _WHOLE - int(shares.sum())
    rounded: NDArray[Any] = shares
    return rounded


def _chunks(plane: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Views of a plane, one after the other."""
    for start in range(0, len(plane), _CHUNK):
        yield plane[start : start + _CHUNK]


def _model(frequencies: NDArray[Any]) -> Any:
    """What the range coder takes. The shares are exact in float64, and so are their sums."""
    return constriction.stream.model.Categorical(frequencies / _WHOLE, perfect=False)


def uniform(size: int) -> Any:
    """The model of a number below `size` of which nothing else is known."""
    return constriction.stream.model.Uniform(size)
