"""Codecs: turn one weight and its mask into named component tensors, and back, bit for bit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from slt_compress.errors import ArtifactError
from slt_compress.masks import count_kept
from slt_compress.storage.bits import bits

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class NmPattern:
    """Of every `group` adjacent weights along `axis`, exactly `kept` survive.

    With an `order` they are adjacent once the axis is in it.
    """

    kept: int
    group: int
    axis: int
    order: tuple[int, ...] | None = None


class Codec(Protocol):
    """A way to store one tensor; its parts are stored under `<name>.<part>`, or `<name>`."""

    @property
    def name(self) -> str:
        """The name that an entry of the manifest has under `format`."""

    @property
    def sparse(self) -> bool:
        """Whether dropped weights cost no value bytes."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of all parts of one tensor."""

    def encode(self, tensor: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Turn a weight and its mask of the same shape into parts, on the CPU.

        Values are stored by mask, not by `!= 0`: every bit of a kept value survives, also those of
        zeros and NaNs.

        Raises:
            ArtifactError: the two do not fit together, or the mask does not fit this codec.
        """

    def decode(
        self,
        parts: Mapping[str, Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Rebuild the dense weight; dropped weights are +0.

        `shape` and `dtype` are those of the weight to fill, so that no size from a file is
        trusted. `mask` is what `decode_mask` returned for the same parts, where it was called.

        Raises:
            ArtifactError: the parts do not describe a weight of this shape and dtype.
        """

    def decode_mask(self, parts: Mapping[str, Tensor], *, shape: tuple[int, ...]) -> Tensor | None:
        """Rebuild the mask; None for a codec that does not know it.

        Raises:
            ArtifactError: the parts do not describe a mask of this shape.
        """

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int | None:
        """Bytes of all parts together, headers aside: exactly, or at most where a mask is coded.

        None where a mask with this `pattern` (or without one) cannot be stored.
        """


class ValuesCodec(Codec, Protocol):
    """A codec whose values are one part, and whose mask can be read without them."""

    @property
    def values_part(self) -> str:
        """The part that holds the values."""

    def read_mask(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor | None:
        """The mask as in `decode_mask`, from the other parts; further ones are not looked at."""


def is_plain(codec: Codec) -> bool:
    """Whether a tensor lies in the file under its own name, in its own shape and dtype."""
    return codec.parts == ("",)


def part_key(name: str, part: str) -> str:
    """Key in the file of one part of the tensor `name`."""
    return f"{name}.{part}" if part else name


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns: the first dimension and all others; below two dimensions, one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def pick(tensor: Tensor, mask: Tensor) -> Tensor:
    """The kept values of a weight, row-major."""
    return bits(tensor.cpu()).reshape(-1)[mask.cpu().reshape(-1)].view(tensor.dtype)


def scatter(values: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `pick`: the values where `mask` keeps, +0 elsewhere, in the mask's shape.

    Raises:
        ArtifactError: the values are not of `dtype`, or not as many as the mask keeps.
    """
    expect_values(values, count_kept(mask))
    if values.dtype is not dtype:
        raise ArtifactError(f"holds values of {values.dtype} where {dtype} is expected")
    source = bits(values)
    return torch.zeros(mask.shape, dtype=source.dtype).masked_scatter_(mask, source).view(dtype)


def expect_values(values: Tensor, kept: int) -> None:
    """Refuse values that are not one for each of `kept` weights.

    Raises:
        ArtifactError: they are not.
    """
    if values.shape != (kept,):
        raise ArtifactError(f"has {tuple(values.shape)} values for {kept:,} kept weights")


def expect_parts(parts: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
    """Refuse missing and unknown parts.

    Raises:
        ArtifactError: the names differ from `names`.
    """
    if set(parts) != set(names):
        raise ArtifactError(f"has the parts {sorted(parts)} where {sorted(names)} are expected")


def expect_same_shape(tensor: Tensor, mask: Tensor) -> None:
    """Refuse a mask that is not boolean or not of the tensor's shape.

    Raises:
        ArtifactError: it is not.
    """
    if mask.dtype is not torch.bool or mask.shape != tensor.shape:
        raise ArtifactError(
            f"a mask of {tuple(mask.shape)} {mask.dtype} does not fit a weight of"
            f" {tuple(tensor.shape)}"
        )
