"""Bits: tensors compared by what is stored, not by what it means."""

from __future__ import annotations

import torch
from torch import Tensor


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, -0 and NaN included."""
    return a.dtype is b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def bits(tensor: Tensor) -> Tensor:
    """The tensor as integers of the same size."""
    size = tensor.element_size()
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    return tensor.detach().contiguous().view(integer)
