"""The bitmask codec: one bit per weight, and the kept values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slt_compress.artifacts.formats.base import (
    NmPattern,
    expect_parts,
    expect_same_shape,
    expect_values,
    pick,
    scatter,
)
from slt_compress.errors import ArtifactError
from slt_compress.masks import count_kept, pack_bits, unpack_bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Bitmask:
    """`bitmask` is uint8 [ceil(n / 8)], row-major, lowest bit first; `values` is [kept]."""

    name: str = "bitmask"
    sparse: bool = True
    parts: tuple[str, ...] = ("bitmask", "values")

    def encode(self, tensor: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Store the kept weights in row-major order."""
        expect_same_shape(tensor, mask)
        return {"bitmask": pack_bits(mask), "values": pick(tensor, mask)}

    def decode(
        self,
        parts: Mapping[str, Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Put the values where a bit is set."""
        mask = self.decode_mask(parts, shape=shape) if mask is None else mask
        return scatter(parts["values"], mask, dtype)

    def decode_mask(self, parts: Mapping[str, Tensor], *, shape: tuple[int, ...]) -> Tensor:
        """Unpack the bits."""
        expect_parts(parts, self.parts)
        try:
            mask = unpack_bits(parts["bitmask"], shape)
        except ValueError as cause:
            raise ArtifactError(f"has an invalid bitmask: {cause}") from cause
        expect_values(parts["values"], count_kept(mask))
        return mask

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int:
        """Count the bytes of the two parts."""
        return (math.prod(shape) + 7) // 8 + kept * dtype.itemsize
