"""The permuted nm codec: N of every M inputs survive, in an order of the inputs that is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slt_compress.artifacts.formats.base import (
    Codec,
    NmPattern,
    expect_parts,
    expect_same_shape,
    expect_values,
    scatter,
)
from slt_compress.artifacts.formats.nm import Nm, find_pattern
from slt_compress.errors import ArtifactError
from slt_compress.masks import count_kept
from slt_compress.sites.input_orders import as_order
from slt_compress.storage.bits import bits

if TYPE_CHECKING:
    from collections.abc import Mapping

_INNER = Nm()


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutedNm:
    """The parts of `Nm` for the weight with its inputs in an order, and that order.

    `order` is int32 [C]: the input at each place. `values` are row-major in the permuted weight.

    Attributes:
        to: the order to encode in; None is that of the weight. Not needed to decode.
    """

    to: tuple[int, ...] | None = None
    name: str = "permuted-nm"
    sparse: bool = True
    parts: tuple[str, ...] = ("order", *_INNER.parts)

    def encode(self, tensor: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Store the weight as `Nm` does, its inputs in the order."""
        expect_same_shape(tensor, mask)
        pattern = find_pattern(mask.cpu(), self.to)
        if pattern is None:
            raise ArtifactError("has no N:M pattern in the order of its inputs")
        size = tensor.shape[pattern.axis]
        order = torch.tensor(self.to or range(size), dtype=torch.int32)
        weight = bits(tensor.cpu()).index_select(pattern.axis, order).view(tensor.dtype)
        turned = mask.cpu().index_select(pattern.axis, order)
        return {"order": order, **_INNER.encode(weight, turned)}

    def decode(
        self,
        parts: Mapping[str, Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Put the values at the positions, and the inputs in their own order."""
        mask = self.decode_mask(parts, shape=shape) if mask is None else mask
        order, axis = _order(parts, shape)
        turned = scatter(parts["values"], mask.index_select(axis, order), dtype)
        return bits(turned).index_select(axis, order.argsort()).view(dtype)

    def decode_mask(self, parts: Mapping[str, Tensor], *, shape: tuple[int, ...]) -> Tensor:
        """Turn the ranks into positions, and the inputs into their own order."""
        expect_parts(parts, self.parts)
        turned = _INNER.read_mask(parts, shape)
        expect_values(parts["values"], count_kept(turned))
        order, axis = _order(parts, shape)
        return turned.index_select(axis, order.argsort())

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int | None:
        """Count the bytes of the four parts; None without a pattern in an order."""
        if pattern is None or pattern.order is None:
            return None
        inner = _INNER.sized(shape, kept, dtype, pattern)
        return inner + len(pattern.order) * torch.int32.itemsize


def in_order(codec: Codec, order: tuple[int, ...] | None) -> Codec:
    """The codec, told the order of the inputs if it needs one."""
    return PermutedNm(to=order) if isinstance(codec, PermutedNm) else codec


def _order(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """The order of the inputs and their axis, which `read_mask` has checked."""
    axis, stored = int(parts["pattern"][2]), parts["order"]
    if stored.dtype is not torch.int32 or stored.shape != (shape[axis],):
        raise ArtifactError(f"has an order of {tuple(stored.shape)} {stored.dtype}")
    if as_order(stored.tolist()) is None:
        raise ArtifactError(f"has an order of {len(stored)} inputs that is not each of them once")
    return stored.long(), axis
