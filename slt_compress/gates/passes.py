"""Passes: the elementwise steps of a gate that torch or numpy does in one go."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

# Elements of a piece: what is made of it stays in the cache.
_PIECE = 1 << 15
Bits = np.ndarray[Any, Any]


def zero_up_to(values: Tensor, scores: Tensor, bound: float) -> Tensor:
    """The values where the scores are above `bound`, else 0."""
    # the backward pass of a threshold is what is wanted here, and one pass over the memory
    result: Tensor = torch.ops.aten.threshold_backward(values, scores, bound)
    return result


def zero_outside(values: Tensor, gates: Tensor, low: float, high: float) -> Tensor:
    """The values where the gates are above `low` and below `high`, else 0."""
    result: Tensor = torch.ops.aten.hardtanh_backward(values, gates, low, high)
    return result


def bits_between(gates: Tensor, low: float, high: float) -> Bits:
    """Whether each gate (CPU) is above `low` and below `high`, eight to a byte."""
    flat = gates.detach().reshape(-1).numpy()
    bits = np.empty(-(-flat.size // 8), dtype=np.uint8)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        packed = np.packbits((piece > low) & (piece < high), bitorder="little")
        bits[start // 8 : start // 8 + packed.size] = packed
    return bits


def times_bits(values: Tensor, bits: Bits) -> Tensor:
    """The values (CPU) where their bit is set, else 0."""
    chosen = np.unpackbits(bits, count=values.numel(), bitorder="little")
    return torch.from_numpy(chosen).to(values.dtype).reshape(values.shape).mul_(values)
