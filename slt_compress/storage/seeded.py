"""Inputs of a model that a seed gives, with the same bits on every platform.

The bits come from numpy's Philox counter generator, whose raw stream is fixed by contract. Values
are made of them with + - * in float64 alone, which IEEE 754 rounds exactly.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slt_compress.errors import SltError
from slt_compress.storage.files import dtype_name
from slt_compress.storage.manifests import as_shape, is_finite

# Elements of all inputs together: 8 images of 2048 x 2048 fit.
MOST_ELEMENTS = 1 << 27
_FLOATS = {dtype_name(d): d for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
_INTEGERS = {
    dtype_name(d): d
    for d in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
}
_DIGITS = 4  # of the ranges: the last bits of a mean depend on the order of its sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A tensor of independent uniform values.

    Attributes:
        dtype: name of the dtype, as in `float32`.
        shape: of the tensor.
        low, high: the bounds; for integers and bool both are included, and `low` is at least 0.
    """

    dtype: str
    shape: tuple[int, ...]
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """The form in a manifest."""
        return {"dtype": self.dtype, "shape": list(self.shape), "low": self.low, "high": self.high}

    def tensor(self, name: str, seed: int) -> Tensor:
        """The values of the input `name`."""
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
        words = stream.random_raw(math.prod(self.shape)) >> np.uint64(11)  # 53 bits
        if self.dtype in _INTEGERS:
            span = np.uint64(int(self.high) - int(self.low) + 1)
            whole = (words % span).astype(np.int64) + int(self.low)
            return torch.from_numpy(whole).reshape(self.shape).to(_INTEGERS[self.dtype])
        values = self.low + (self.high - self.low) * (words.astype(np.float64) * 2.0**-53)
        return torch.from_numpy(values).reshape(self.shape).to(_FLOATS[self.dtype])


def range_like(name: str, tensor: Tensor) -> Range | None:
    """A range as plausible as a real input; None where values cannot be made up.

    Floats keep mean and variance. Integers are ids between the smallest and the largest that
    were seen, so that all of them are valid. A mask hides nothing.
    """
    dtype, shape = dtype_name(tensor.dtype), tuple(tensor.shape)
    if tensor.numel() == 0 or tensor.dim() == 0 or tensor.numel() > MOST_ELEMENTS:
        return None
    if "mask" in name and dtype in (*_INTEGERS, *_FLOATS):
        most = float(tensor.max()) if dtype in _FLOATS else int(tensor.max())
        usable = math.isfinite(most) and most >= 0
        return Range(dtype=dtype, shape=shape, low=most, high=most) if usable else None
    if dtype in _FLOATS:
        wide = tensor.double()
        mean, spread = float(wide.mean()), math.sqrt(3.0 * float(wide.var(correction=0)))
        if not math.isfinite(mean + spread):
            return None
        low, high = round(mean - spread, _DIGITS), round(mean + spread, _DIGITS)
        return Range(dtype=dtype, shape=shape, low=low, high=high)
    if dtype not in _INTEGERS:
        return None
    ids = tensor[tensor >= 0]
    if ids.numel() == 0:
        return None
    return Range(dtype=dtype, shape=shape, low=int(ids.min()), high=int(ids.max()))


def parse_ranges(
    stated: Mapping[str, object], damaged: Callable[[str], SltError]
) -> dict[str, Range]:
    """The ranges in a manifest, checked; `damaged` makes the error.

    Raises:
        SltError: one is not a range, or all of them are too large to be inputs.
    """
    ranges = {name: _parsed(name, entry, damaged) for name, entry in stated.items()}
    if sum(math.prod(one.shape) for one in ranges.values()) > MOST_ELEMENTS:
        raise damaged(f"its inputs have more than {MOST_ELEMENTS} elements")
    return ranges


def _parsed(name: str, entry: object, damaged: Callable[[str], SltError]) -> Range:
    values = entry if isinstance(entry, Mapping) else {}
    dtype, shape = values.get("dtype"), as_shape(values.get("shape"))
    low, high = values.get("low"), values.get("high")
    if shape is None or not is_finite(low) or not is_finite(high) or low > high:
        raise damaged(f"the input {name[:80]!r} has no range of values")
    whole = isinstance(low, int) and isinstance(high, int) and low >= 0 and high < 2**53
    if not isinstance(dtype, str) or not (dtype in _FLOATS or (dtype in _INTEGERS and whole)):
        raise damaged(f"the input {name[:80]!r} cannot be {str(dtype)[:20]} in such a range")
    if dtype in _INTEGERS and high > _most(_INTEGERS[dtype]):
        raise damaged(f"the input {name[:80]!r} has values that {dtype} cannot hold")
    return Range(dtype=dtype, shape=shape, low=low, high=high)


def _most(dtype: torch.dtype) -> int:
    return 1 if dtype is torch.bool else torch.iinfo(dtype).max
