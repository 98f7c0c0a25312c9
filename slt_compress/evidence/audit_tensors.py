"""Weights of somebody else's file, each read and dequantised only when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """One weight, as whoever runs the file will use it.

    Attributes:
        encoding: how it is stored: a dtype, or the name of a quantisation.
        read: the weight in a floating-point dtype. Its shape may be another one of as many
            elements, where the file does not say the weight's own.
    """

    encoding: str
    read: Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """The weights of a file or folder by the names they have there.

    Attributes:
        kind: what it is, in words, such as `GGUF`.
        weights: by name; tensors that cannot be weights of a site may be among them.
        heads: numbers of attention heads whose rows the file may hold in another order.
        notes: what a user should know beside the figures.
    """

    kind: str
    weights: Mapping[str, StoredWeight]
    heads: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())


def blockwise(values: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """`(values - zero) * scale` in float32, each scale for a block of a matrix.

    A scale of fewer rows or columns than `values` counts for as many neighbours as it takes.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    whole = values.float()
    if zero is not None:
        whole = whole - _spread(zero.float(), values.shape)
    return whole * _spread(scale.float(), values.shape)


def _spread(scale: Tensor, shape: Any) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1 and len(shape) > 1:
        scale = scale.reshape(-1, *(1 for _ in shape[1:]))
    if scale.dim() != len(shape):
        raise ValueError(f"scales of {tuple(scale.shape)} for values of {tuple(shape)}")
    for dim, size in enumerate(shape):
        if scale.shape[dim] not in (1, size):
            if not 0 < scale.shape[dim] <= size:
                raise ValueError(f"scales of {tuple(scale.shape)} for values of {tuple(shape)}")
            block = -(-size // scale.shape[dim])
            scale = scale.repeat_interleave(block, dim=dim).narrow(dim, 0, size)
    return scale


def unpack_words(packed: Tensor, bits: int) -> Tensor:
    """Numbers of 1 to 8 bits out of the last dimension of words or bytes, the lowest bits first.

    Numbers may lie across two of them. uint8, with as many numbers as fit.
    """
    words = packed.contiguous().view(torch.uint8).reshape(*packed.shape[:-1], -1)
    places = torch.arange(8, dtype=torch.uint8)
    stream = ((words.unsqueeze(-1) >> places) & 1).reshape(*packed.shape[:-1], -1)
    count = stream.shape[-1] // bits
    groups = stream[..., : count * bits].reshape(*packed.shape[:-1], count, bits)
    weights = 1 << torch.arange(bits, dtype=torch.int32)
    return (groups.int() * weights).sum(-1).to(torch.uint8)
