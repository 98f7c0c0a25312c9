"""The packed codecs: a mask as another codec stores it, and values in planes of bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slt_compress.artifacts.formats.base import (
    NmPattern,
    ValuesCodec,
    expect_parts,
    expect_same_shape,
    scatter,
)
from slt_compress.artifacts.formats.byte_planes import decode_planes, encode_planes, message_slack
from slt_compress.masks import count_kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

_PLANES = ("packed", "rest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The parts of `inner`, with `packed` and `rest` (see `byte_planes`) in place of its values."""

    inner: ValuesCodec

    @property
    def name(self) -> str:
        """The inner codec's, marked."""
        return f"packed-{self.inner.name}"

    @property
    def sparse(self) -> bool:
        """As of the inner codec."""
        return self.inner.sparse

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts of the inner codec but its values, and the planes."""
        return (*self._mask_parts, *_PLANES)

    @property
    def _mask_parts(self) -> tuple[str, ...]:
        return tuple(part for part in self.inner.parts if part != self.inner.values_part)

    def encode(self, tensor: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Store as the inner codec does, then pack the values."""
        expect_same_shape(tensor, mask)
        return self.repack(self.inner.encode(tensor, mask))

    def repack(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts of the inner codec as those of this one."""
        packed = encode_planes(parts[self.inner.values_part].reshape(-1))
        mask = {part: parts[part] for part in self._mask_parts}
        return mask | dict(zip(_PLANES, packed, strict=True))

    def decode(
        self,
        parts: Mapping[str, Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Unpack the values and put them where the mask keeps."""
        mask = self.decode_mask(parts, shape=shape) if mask is None else mask
        count = math.prod(shape) if mask is None else count_kept(mask)
        values = decode_planes(parts["packed"], parts["rest"], count, dtype)
        return values.reshape(shape) if mask is None else scatter(values, mask, dtype)

    def decode_mask(self, parts: Mapping[str, Tensor], *, shape: tuple[int, ...]) -> Tensor | None:
        """Decode as the inner codec does."""
        expect_parts(parts, self.parts)
        return self.inner.read_mask(parts, shape)

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int | None:
        """Bytes at most: those of the inner codec, if no value says more than its bits."""
        inner = self.inner.nbytes(shape, kept, dtype, pattern)
        return None if inner is None else inner + message_slack()
