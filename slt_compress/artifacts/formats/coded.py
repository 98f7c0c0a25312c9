"""The coded codec: an entropy-coded mask, and the kept values."""

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
from slt_compress.artifacts.formats.entropy import coded_nbytes, decode_masks, encode_masks
from slt_compress.masks import count_kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """`mask` is uint8 [4 * words], the one mask of a stream of masks; `values` is [kept]."""

    name: str = "coded"
    sparse: bool = True
    parts: tuple[str, ...] = ("mask", "values")
    values_part: str = "values"

    def encode(self, tensor: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Store the kept weights in row-major order."""
        expect_same_shape(tensor, mask)
        return {"mask": encode_masks([mask]), "values": pick(tensor, mask)}

    def decode(
        self,
        parts: Mapping[str, Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Put the values where the mask keeps."""
        mask = self.decode_mask(parts, shape=shape) if mask is None else mask
        return scatter(parts["values"], mask, dtype)

    def decode_mask(self, parts: Mapping[str, Tensor], *, shape: tuple[int, ...]) -> Tensor:
        """Decode the stream."""
        expect_parts(parts, self.parts)
        mask = self.read_mask(parts, shape)
        expect_values(parts["values"], count_kept(mask))
        return mask

    def read_mask(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """Decode the stream, whatever the values are."""
        return decode_masks(parts["mask"], [shape])[0]

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int:
        """Bytes of the values, and of a mask of which only the density is known.

        The file is smaller where the densities of rows and columns say more about the mask.
        """
        return coded_nbytes(math.prod(shape), kept) + kept * dtype.itemsize
