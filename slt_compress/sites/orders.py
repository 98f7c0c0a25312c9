"""Orders: random permutations, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MANTISSA = 24  # bits of a uniform fp32 number
_PLACE = np.uint64(32)  # bits of a place in a row


def random_order(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """The places [rows, columns] of every row in a random order of their own.

    Uniform numbers are sorted, equal ones in order: each with its place behind it in one integer,
    which several numbers at a time can be sorted by.
    """
    drawn = torch.rand(tuple(shape), generator=generator).numpy()
    keys = (drawn * np.float32(1 << _MANTISSA)).astype(np.uint64)
    keys <<= _PLACE
    keys |= np.arange(shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64((1 << 32) - 1)
    return torch.from_numpy(keys.view(np.int64))


def permuted(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Every row in an order of its own."""
    return rows.gather(1, random_order(rows.shape, generator))
