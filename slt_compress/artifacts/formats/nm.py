"""The nm codec: exactly N of every M weights survive, their positions in the fewest bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from slt_compress.artifacts.formats.base import (
    NmPattern,
    expect_parts,
    expect_same_shape,
    expect_values,
    pick,
    scatter,
)
from slt_compress.errors import ArtifactError
from slt_compress.masks import count_kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_LARGEST_GROUP = 64  # the number of ways to choose from it still fits in 63 bits
_TABLE = 1 << 16  # up to this many ways, a table of all of them is faster than unranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Nm:
    """A rank per group instead of a bit per weight.

    The kept positions p_1 < … < p_N of a group are the number C(p_1, 1) + … + C(p_N, N), one of
    C(M, N) (the combinatorial number system), in ceil(log2 C(M, N)) bits: 3 instead of 4 for 2:4.
    `positions` is uint8, these numbers one after the other, lowest bit first, in the order of the
    weight with the axis of the groups moved to the end; `pattern` is int64 [3]: N, M, axis.
    `values` is [kept], row-major in the weight's own order.
    """

    name: str = "nm"
    sparse: bool = True
    parts: tuple[str, ...] = ("pattern", "positions", "values")
    values_part: str = "values"

    def encode(self, tensor: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Store the rank of every group and the kept weights."""
        expect_same_shape(tensor, mask)
        pattern = find_pattern(mask.cpu())
        if pattern is None:
            raise ArtifactError("does not keep the same number of weights in every group (N:M)")
        groups = mask.cpu().movedim(pattern.axis, -1).reshape(-1, pattern.group).numpy()
        return {
            "pattern": torch.tensor([pattern.kept, pattern.group, pattern.axis], dtype=torch.int64),
            "positions": _pack(_rank(groups), _width(pattern)),
            "values": pick(tensor, mask),
        }

    def decode(
        self,
        parts: Mapping[str, Tensor],
        *,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Put the values at the positions."""
        mask = self.decode_mask(parts, shape=shape) if mask is None else mask
        return scatter(parts["values"], mask, dtype)

    def decode_mask(self, parts: Mapping[str, Tensor], *, shape: tuple[int, ...]) -> Tensor:
        """Turn the ranks into positions."""
        expect_parts(parts, self.parts)
        mask = self.read_mask(parts, shape)
        expect_values(parts["values"], count_kept(mask))
        return mask

    def read_mask(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """Turn the ranks into positions, whatever the values are."""
        pattern = _pattern(parts["pattern"], shape)
        count = math.prod(shape) // pattern.group
        ranks = _unpack(parts["positions"], count, _width(pattern))
        ways = math.comb(pattern.group, pattern.kept)
        if count and int(ranks.max()) >= ways:
            raise ArtifactError(f"has a group whose number is not below {ways:,}")
        if ways <= _TABLE:
            groups = _choose(np.arange(ways, dtype=np.int64), pattern)[ranks]
        else:
            groups = _choose(ranks, pattern)
        moved = [*shape[: pattern.axis], *shape[pattern.axis + 1 :], shape[pattern.axis]]
        return torch.from_numpy(groups).reshape(moved).movedim(-1, pattern.axis).contiguous()

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int | None:
        """Count the bytes of the three parts; None without a pattern in the weight's own order."""
        if pattern is None or pattern.order is not None:
            return None
        return self.sized(shape, kept, dtype, pattern)

    def sized(
        self, shape: tuple[int, ...], kept: int, dtype: torch.dtype, pattern: NmPattern
    ) -> int:
        """Bytes of the three parts."""
        bits = math.prod(shape) // pattern.group * _width(pattern)
        return 3 * torch.int64.itemsize + (bits + 7) // 8 + kept * dtype.itemsize


def find_pattern(mask: Tensor, order: tuple[int, ...] | None = None) -> NmPattern | None:
    """The N:M pattern of a mask with the smallest groups; None if the mask has none.

    Axis 1 (the input channels of most layers) is tried first, then the others in order. With an
    order of inputs, the axes of its length are tried in that order.
    """
    if order is not None:
        return _find_in_order(mask, order)
    total, kept = mask.numel(), count_kept(mask)
    if not 0 < kept < total:
        return None
    for axis in sorted(range(mask.dim()), key=lambda axis: (axis != 1, axis)):
        size = mask.shape[axis]
        for group in range(2, min(size, _LARGEST_GROUP) + 1):
            if size % group == 0 and kept * group % total == 0:
                pattern = NmPattern(kept=kept * group // total, group=group, axis=axis)
                if _holds(mask, pattern):
                    return pattern
    return None


def _find_in_order(mask: Tensor, order: tuple[int, ...]) -> NmPattern | None:
    places = torch.tensor(order)
    for axis in sorted(range(mask.dim()), key=lambda axis: (axis != 1, axis)):
        if mask.shape[axis] == len(order):
            turned = mask.index_select(axis, places).movedim(axis, -1)
            pattern = find_pattern(turned.reshape(-1, len(order)))
            if pattern is not None and pattern.axis == 1:
                return NmPattern(kept=pattern.kept, group=pattern.group, axis=axis, order=order)
    return None


def _holds(mask: Tensor, pattern: NmPattern) -> bool:
    moved = mask.movedim(pattern.axis, -1)
    # Most masks without a pattern fail in the first few groups.
    for part in (moved[(0,) * (mask.dim() - 1)], moved):
        groups = part.reshape(-1, pattern.group).numpy()
        if not (np.count_nonzero(groups, axis=1) == pattern.kept).all():
            return False
    return True


def _pattern(stored: Tensor, shape: tuple[int, ...]) -> NmPattern:
    """Check a stored pattern against the weight's shape."""
    if stored.dtype is not torch.int64 or stored.shape != (3,):
        raise ArtifactError(f"has a pattern of {tuple(stored.shape)} {stored.dtype}")
    kept, group, axis = stored.tolist()
    if (
        not 0 < kept < group <= _LARGEST_GROUP
        or not 0 <= axis < len(shape)
        or shape[axis] % group != 0
    ):
        raise ArtifactError(f"has the pattern {kept}:{group} along axis {axis}, which does not fit")
    return NmPattern(kept=kept, group=group, axis=axis)


def _width(pattern: NmPattern) -> int:
    """Bits of the number of one group."""
    return (math.comb(pattern.group, pattern.kept) - 1).bit_length()


@cache
def _ways() -> NDArray[Any]:
    """`C(position, count)`, int64, as far as a group needs it."""
    size = range(_LARGEST_GROUP)
    return np.array([[math.comb(p, k) for k in range(_LARGEST_GROUP + 1)] for p in size])


def _rank(groups: NDArray[Any]) -> NDArray[Any]:
    """The number of every group, int64 [len(groups)]."""
    ranks = np.zeros(len(groups), dtype=np.int64)
    seen = np.zeros(len(groups), dtype=np.int8)
    for position, kept in enumerate(np.ascontiguousarray(groups.T)):
        seen += kept
        ranks += _ways()[position][seen] * kept
    return ranks


def _choose(ranks: NDArray[Any], pattern: NmPattern) -> NDArray[Any]:
    """The groups with these numbers, bool [len(ranks), M]: greedily from the last position."""
    left, remaining = ranks.copy(), np.full(len(ranks), pattern.kept)
    groups = np.zeros((len(ranks), pattern.group), dtype=bool)
    for position in range(pattern.group - 1, -1, -1):
        ways = _ways()[position, remaining]
        taken = (remaining > 0) & (left >= ways)
        groups[:, position] = taken
        left -= np.where(taken, ways, 0)
        remaining -= taken
    return groups


def _pack(numbers: NDArray[Any], width: int) -> Tensor:
    """Numbers of `width` bits each as bytes, lowest bit first."""
    bits = np.empty((len(numbers), width), dtype=np.uint8)
    for place in range(width):
        bits[:, place] = (numbers >> place) & 1
    return torch.from_numpy(np.packbits(bits.reshape(-1), bitorder="little"))


def _unpack(packed: Tensor, count: int, width: int) -> NDArray[Any]:
    """Undo `_pack`, int64 [count]."""
    if packed.dtype is not torch.uint8 or packed.shape != ((count * width + 7) // 8,):
        raise ArtifactError(
            f"has positions of {tuple(packed.shape)} {packed.dtype} for {count:,} groups of {width}"
            " bits"
        )
    bits = np.unpackbits(packed.numpy(), bitorder="little")
    if bits[count * width :].any():
        raise ArtifactError("has a bit set after the last position")
    columns = bits[: count * width].reshape(count, width)
    numbers = np.zeros(count, dtype=np.int64)
    for place in range(width):
        numbers |= columns[:, place].astype(np.int64) << place
    return numbers
