"""The dense codec: the whole weight, dropped values as zeros."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slt_compress.artifacts.formats.base import NmPattern, expect_parts, expect_same_shape
from slt_compress.errors import ArtifactError
from slt_compress.storage.bits import bits

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """One part without a suffix, in the shape and dtype of the weight."""

    name: str = "dense"
    sparse: bool = False
    parts: tuple[str, ...] = ("",)
    values_part: str = ""

    def encode(self, tensor: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Zero what the mask drops."""
        expect_same_shape(tensor, mask)
        # Not tensor * mask: that would leave -0 and turn a dropped inf into NaN.
        values = bits(tensor.cpu()).masked_fill(~mask.cpu(), 0)
        return {"": values.view(tensor.dtype)}

    def decode(
        self,
        parts: Mapping[str, Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the one part."""
        expect_parts(parts, self.parts)
        tensor = parts[""]
        if tuple(tensor.shape) != shape or tensor.dtype is not dtype:
            raise ArtifactError(
                f"holds {tuple(tensor.shape)} {tensor.dtype} where {shape} {dtype} is expected"
            )
        return tensor

    def decode_mask(self, parts: Mapping[str, Tensor], *, shape: tuple[int, ...]) -> None:
        """Return None: a zero may be a kept weight."""

    def read_mask(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """Return None."""

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int:
        """Return elements times bytes per element, whatever was kept."""
        return math.prod(shape) * dtype.itemsize
