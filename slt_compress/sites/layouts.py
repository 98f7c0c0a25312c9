"""Layouts: which weights of a site each score governs, and which masks are allowed.

A *unit* is what one score keeps or drops: one weight, or a block of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from slt_compress.sites.orders import permuted, random_order


class Layout(Protocol):
    """Which weights of a site each score governs."""

    def grid(self, weight: Sequence[int]) -> tuple[int, ...]:
        """Shape of the scores for a weight of this shape."""

    def centre(self, scores: Tensor) -> Tensor:
        """The scores as they compete; the same tensor where units are independent."""

    def expand(self, units: Tensor) -> Tensor:
        """Values per unit, expanded to the shape of the weight; the same tensor if they have it."""

    def reduce(self, values: Tensor) -> Tensor:
        """Values of the shape of the weight, summed over each unit."""

    def permute(self, units: Tensor, generator: torch.Generator, *, by_row: bool) -> Tensor:
        """A random permutation of a mask of units that respects the pattern.

        `by_row` keeps the count of every row. A row is one output of the site; where it is a
        single unit, all units are permuted.
        """

    def holds(self, mask: Tensor, unseen: Tensor) -> bool:
        """Whether a mask of weights respects the pattern.

        `unseen` masks the weights that are 0 at the origin; they may be kept although the file
        shows zero.
        """


@dataclass(frozen=True, slots=True)
class Elementwise:
    """One score per weight, each on its own."""

    def grid(self, weight: Sequence[int]) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(weight)

    def centre(self, scores: Tensor) -> Tensor:
        """The scores."""
        return scores

    def expand(self, units: Tensor) -> Tensor:
        """The values."""
        return units

    def reduce(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def permute(self, units: Tensor, generator: torch.Generator, *, by_row: bool) -> Tensor:
        """Uniform in the weight, or within each of its rows (first dimension)."""
        rows = units.reshape(len(units) if by_row else 1, -1)
        return permuted(rows, generator).reshape(units.shape)

    def holds(self, mask: Tensor, unseen: Tensor) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Grouped:
    """One score per weight, and `kept` of every `size` neighbours along `dim` are kept.

    With an `order` those are neighbours that its places name: the k-th is the input `order[k]`.
    """

    kept: int
    size: int
    dim: int
    order: tuple[int, ...] | None = None

    def grid(self, weight: Sequence[int]) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(weight)

    def centre(self, scores: Tensor) -> Tensor:
        """Scores minus the boundary of their group, so that exactly `kept` of each group exceed 0.

        The boundary is the midpoint between the last score that is kept and the first that is
        not. Of equal scores the first ones are kept, as the smallest number above 0.
        """
        groups = self._groups(scores)
        last, first = _neighbours(groups, self.kept)
        middle = first + (last - first) / 2
        # Rounding may give `last`, and infinities give NaN; then `first` separates the two.
        middle = torch.where((middle > first) & (middle < last), middle, first)
        centred = groups - middle[..., None]
        tied = last == first
        if bool(tied.any()):
            group, value = groups[tied], last[tied][:, None]
            equal, above = group == value, group > value
            missing = self.kept - above.sum(-1, keepdim=True)
            taken = equal & (equal.cumsum(-1) <= missing)
            fixed = torch.where(equal, torch.zeros_like(group), centred[tied])
            least = torch.finfo(scores.dtype).tiny
            centred[tied] = torch.where(taken, torch.full_like(group, least), fixed)
        return self._back(centred)

    def expand(self, units: Tensor) -> Tensor:
        """The values."""
        return units

    def reduce(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def permute(self, units: Tensor, generator: torch.Generator, *, by_row: bool) -> Tensor:
        """A random choice in each group or, by row, the groups of each output in random order."""
        groups = self._groups(units)
        if not by_row:
            chosen = permuted(groups.reshape(-1, self.size), generator).reshape(groups.shape)
            return self._back(chosen)
        rows = groups.reshape(len(groups), -1, self.size)
        order = random_order(rows.shape[:2], generator)
        moved = rows.gather(1, order[..., None].expand_as(rows))
        return self._back(moved.reshape(groups.shape))

    def holds(self, mask: Tensor, unseen: Tensor) -> bool:
        """Whether every group keeps exactly its number."""
        if mask.shape[self.dim] % self.size:
            return False
        seen = self._groups(mask).sum(-1)
        most = self._groups(mask | unseen).sum(-1)
        return bool(((seen <= self.kept) & (most >= self.kept)).all())

    def _groups(self, values: Tensor) -> Tensor:
        """[..., groups, size], a view unless there is an order; first the outputs of a matrix."""
        moved = values.movedim(self.dim, -1)
        if self.order is not None:
            moved = moved[..., torch.tensor(self.order, device=values.device)]
        return moved.view(*moved.shape[:-1], -1, self.size)

    def _back(self, groups: Tensor) -> Tensor:
        values = groups.flatten(-2)
        if self.order is not None:
            values = values[..., torch.tensor(self.order, device=values.device).argsort()]
        return values.movedim(-1, self.dim).contiguous()


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """One score per block of `block` rows and columns of the weight, seen as a matrix.

    `weight` is the shape of the weight and `matrix` its rows and columns as a matrix (row-major).
    Blocks at ragged edges are smaller.
    """

    weight: tuple[int, ...]
    matrix: tuple[int, int]
    block: tuple[int, int]

    def grid(self, weight: Sequence[int]) -> tuple[int, ...]:
        """Blocks along rows and columns."""
        (rows, columns), (height, width) = self.matrix, self.block
        return -(-rows // height), -(-columns // width)

    def centre(self, scores: Tensor) -> Tensor:
        """The scores."""
        return scores

    def expand(self, units: Tensor) -> Tensor:
        """Each value repeated over its block."""
        (rows, columns), (height, width) = self.matrix, self.block
        tall = units if height == 1 else units.repeat_interleave(height, 0)[:rows]
        if tall.shape[1] == 1:
            wide = tall.expand(len(tall), columns)
        elif width == 1:
            wide = tall
        else:
            wide = tall.repeat_interleave(width, 1)[:, :columns]
        return wide.reshape(self.weight)

    def reduce(self, values: Tensor) -> Tensor:
        """Sums over the blocks."""
        (height, width), (tall, wide) = self.block, self.grid(self.weight)
        matrix = values.reshape(self.matrix)
        missing = (wide * width - self.matrix[1], tall * height - self.matrix[0])
        if any(missing):
            matrix = functional.pad(matrix, (0, missing[0], 0, missing[1]))
        return matrix.reshape(tall, height, wide, width).sum((1, 3))

    def permute(self, units: Tensor, generator: torch.Generator, *, by_row: bool) -> Tensor:
        """Uniform in the site, or within each row of blocks."""
        rows = units if by_row and units.shape[1] > 1 else units.reshape(1, -1)
        return permuted(rows, generator).reshape(units.shape)

    def holds(self, mask: Tensor, unseen: Tensor) -> bool:
        """Whether every block is kept or dropped whole."""
        if tuple(mask.shape) != self.weight:
            return False
        return not bool((self.expand(kept_units(self, mask)) & ~mask & ~unseen).any())


# Scores of weights that must not be kept: below the others of their site by more than any noise or,
# where no weight of the site may be kept, below all scores.
_BELOW, _NEVER = 10.0, -1e30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inside:
    """One score per weight; only weights of the mask `allowed` may be kept."""

    allowed: Tensor

    @property
    def room(self) -> int:
        """How many weights may be kept."""
        return int(self.allowed.count_nonzero())

    def grid(self, weight: Sequence[int]) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(weight)

    def centre(self, scores: Tensor) -> Tensor:
        """The scores, with those outside lowered below all inside."""
        allowed = self.allowed.to(scores.device)
        inside = scores[allowed]
        lowest = float(inside.min()) - _BELOW if inside.numel() else _NEVER
        return torch.where(allowed, scores, lowest)

    def expand(self, units: Tensor) -> Tensor:
        """The values, 0 outside."""
        return units * self.allowed.to(units.device)

    def reduce(self, values: Tensor) -> Tensor:
        """The values, 0 outside."""
        return values * self.allowed.to(values.device)

    def permute(self, units: Tensor, generator: torch.Generator, *, by_row: bool) -> Tensor:
        """Uniform inside, or within each row (first dimension) of it."""
        rows = units.reshape(len(units) if by_row else 1, -1)
        allowed = self.allowed.reshape(rows.shape)
        counts = (rows & allowed).sum(1, keepdim=True)
        # The positions of each row in random order, those outside at the end.
        order = torch.rand(rows.shape, generator=generator).masked_fill_(~allowed, 2.0).argsort(1)
        taken = torch.arange(rows.shape[1]).expand(rows.shape) < counts
        return torch.zeros_like(rows).scatter_(1, order, taken).reshape(units.shape)

    def holds(self, mask: Tensor, unseen: Tensor) -> bool:
        """Whether nothing outside is kept."""
        return not bool((mask & ~self.allowed).any())


ELEMENTWISE = Elementwise()


def kept_units(layout: Layout, mask: Tensor) -> Tensor:
    """The units of which a mask keeps any weight."""
    if isinstance(layout, Elementwise):
        return mask
    return layout.reduce(mask.float()) > 0.0


def norms(layout: Layout, weight: Tensor) -> Tensor:
    """The weight itself, or the L2 norm of every unit (fp32) where a unit has several weights."""
    if layout.grid(weight.shape) == tuple(weight.shape) and not isinstance(layout, Blocks):
        return weight
    return layout.reduce(weight.detach().float().square()).sqrt()


def _neighbours(groups: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The `kept`-th and the next largest value along the last dimension.

    Sorts by odd-even transposition, whole columns at a time, which is several times faster than
    sorting millions of rows of four.
    """
    columns = list(groups.unbind(-1))
    for turn in range(len(columns)):
        for i in range(turn % 2, len(columns) - 1, 2):
            high, low = columns[i], columns[i + 1]
            columns[i], columns[i + 1] = torch.maximum(high, low), torch.minimum(high, low)
    return columns[kept - 1], columns[kept]
