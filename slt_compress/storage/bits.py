"""Bits: tensors compared by what is stored, not by what it means."""

from __future__ import annotations

import torch
from torch import Tensor

from slt_compress.errors import ArtifactError

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits, those of -0 and NaN included."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def bits(tensor: Tensor) -> Tensor:
    """View a tensor as integers of the same width; copying these keeps NaN payloads and signs.

    Raises:
        ArtifactError: the elements are wider than 8 bytes.
    """
    integer = _INTEGERS.get(tensor.element_size())
    if integer is None:
        raise ArtifactError(
            f"tensors of {tensor.dtype} cannot be stored by mask; convert the model"
        )
    return tensor.detach().contiguous().view(integer)
