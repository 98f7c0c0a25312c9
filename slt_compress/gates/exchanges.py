"""Exchanges: lower the output error of a layer by exchanging kept weights for removed ones.

A layer is a matrix `weight` [R, C] of R outputs over C inputs; `gram` [C, C] is the second moment
of its inputs, X'X / N. With d = (1 - mask) * weight, the removed part, a row's error is d G d', the
mean square of what its output misses. Rows do not interact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

# Candidates of a side that a row looks at together, and rows that are worked on at once: the
# largest temporary is [_ROWS, 2 * _POOL, 2 * _POOL].
_POOL = 16
_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Which exchanges are allowed.

    Attributes:
        group: a weight changes places only within its group of so many neighbouring columns; 0:
            within its whole row.
        allowed: mask [R, C] of the weights that may be kept; None allows all.
    """

    group: int = 0
    allowed: Tensor | None = None


ANYWHERE = Bounds()


def blend(gram: Tensor, diagonal: float) -> Tensor:
    """(1 - lambda) G + lambda diag(G): at 1 the error is Wanda's, the sum of w^2 G_jj.

    Args:
        gram: [C, C].
        diagonal: lambda, in [0, 1].
    """
    blended = gram * (1.0 - diagonal)
    blended.diagonal().copy_(gram.diagonal())
    return blended


def row_errors(weight: Tensor, mask: Tensor, gram: Tensor) -> Tensor:
    """The error of each row, [R], in fp64."""
    removed = weight.double().masked_fill(mask, 0.0)
    return ((removed @ gram.double()) * removed).sum(1)


def exchange_in_rows(
    weight: Tensor, mask: Tensor, gram: Tensor, bounds: Bounds = ANYWHERE, *, pool: int = _POOL
) -> Tensor:
    """The mask after the best exchanges within each row; every row keeps its count.

    Bringing p back and removing u changes the error of a row by (SparseSwaps, arXiv 2512.10922)

        -2 w_p c_p + w_p^2 G_pp + 2 w_u c_u + w_u^2 G_uu - 2 w_p w_u G_pu,   c = G d.

    A row takes the best of all pairs among `pool` candidates of each side until there is none
    that lowers its error. No row ends with a larger error than it began with.

    Args:
        weight: [R, C], in the dtype that all is computed in.
        mask: [R, C], bool.
        gram: [C, C], symmetric, positive semidefinite.
        bounds: where exchanges are allowed.
        pool: candidates a side (groups, where there are any).
    """
    rows = [
        _exchanged(weight[at], mask[at], gram, _part(bounds, at), pool)
        for at in _slices(len(weight), _ROWS)
    ]
    return torch.cat(rows)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _part(bounds: Bounds, rows: slice | Tensor) -> Bounds:
    allowed = None if bounds.allowed is None else bounds.allowed[rows]
    return Bounds(group=bounds.group, allowed=allowed)


def _exchanged(weight: Tensor, mask: Tensor, gram: Tensor, bounds: Bounds, pool: int) -> Tensor:
    mask = mask.clone()
    active = torch.arange(len(weight))
    before = row_errors(weight, mask, gram)
    first = mask.clone()
    least = before.to(weight.dtype) * _precision(weight.dtype)
    while active.numel():
        part = _part(bounds, active)
        kept, changed = _round(weight[active], mask[active], gram, part, pool, least[active])
        mask[active] = kept
        active = active[changed]
    worse = row_errors(weight, mask, gram) > before
    mask[worse] = first[worse]
    return mask


def _precision(dtype: torch.dtype) -> float:
    """Share of a row's error below which a change is rounding."""
    return float(torch.finfo(dtype).eps) * 32.0


def costs(weight: Tensor, mask: Tensor, gram: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """What each weight would add to its row's error alone: by coming back, and by going.

    Both [R, C]; infinite for a weight that cannot.
    """
    removed = weight.masked_fill(mask, 0.0)
    cross = 2.0 * weight * (removed @ gram)
    energy = weight.square() * gram.diagonal()
    fixed = mask if allowed is None else mask | ~allowed
    return (energy - cross).masked_fill(fixed, inf), (energy + cross).masked_fill(~mask, inf)


def _round(
    weight: Tensor, mask: Tensor, gram: Tensor, bounds: Bounds, pool: int, least: Tensor
) -> tuple[Tensor, Tensor]:
    """One choice of candidates in every row and all exchanges among them; which rows changed."""
    back, gone = costs(weight, mask, gram, bounds.allowed)
    if bounds.group:
        columns = _grouped_candidates(weight, back, gone, gram, bounds.group, pool)
    else:
        size = min(pool, weight.shape[1])
        columns = torch.cat(
            [back.topk(size, largest=False)[1], gone.topk(size, largest=False)[1]], dim=1
        )
    local = _Candidates(
        mask=mask.gather(1, columns),
        free=torch.ones_like(columns, dtype=torch.bool)
        if bounds.allowed is None else bounds.allowed.gather(1, columns),
        linear=((weight.masked_fill(mask, 0.0) @ gram) * weight).gather(1, columns) * 2.0,
        pairs=_pairs(weight.gather(1, columns), gram, columns),
        together=_together(columns.shape[1], bounds.group),
    )
    changed = local.exchange_(least)
    return mask.scatter(1, columns, local.mask), changed


def _pairs(weight: Tensor, gram: Tensor, columns: Tensor) -> Tensor:
    """2 w_i w_j G_ij of the candidates of each row, [R, n, n]."""
    pairs = gram[columns[:, :, None], columns[:, None, :]]
    return pairs.mul_(weight[:, :, None]).mul_(weight[:, None, :] * 2.0)


def _together(size: int, group: int) -> Tensor | None:
    """Which pairs of candidates may change places, [n, n]; None: all."""
    if not group:
        return None
    number = torch.arange(size) // group
    return number[:, None] == number[None, :]


def _grouped_candidates(
    weight: Tensor, back: Tensor, gone: Tensor, gram: Tensor, group: int, pool: int
) -> Tensor:
    """All columns of the `pool` groups in which one exchange lowers the error most."""
    rows, columns = weight.shape
    shape = (rows, columns // group, group)
    w, a, b = weight.view(shape), back.view(shape), gone.view(shape)
    blocks = gram.unflatten(0, (-1, group)).unflatten(2, (-1, group)).diagonal(dim1=0, dim2=2)
    best = torch.full(shape[:2], inf, dtype=weight.dtype)
    for i in range(group):
        for j in range(group):
            if i != j:
                cross = 2.0 * w[..., i] * w[..., j] * blocks[i, j]
                best = torch.minimum(best, a[..., i] + b[..., j] - cross)
    chosen = best.topk(min(pool, shape[1]), largest=False)[1]
    return (chosen[:, :, None] * group + torch.arange(group)).flatten(1)


@dataclass(slots=True, kw_only=True)
class _Candidates:
    """The exchanges among n candidates of every row, the rest of the row fixed.

    Attributes:
        mask, free: [R, n], kept ones, and those that may be kept.
        linear: [R, n], 2 w_j c_j.
        pairs: [R, n, n], 2 w_i w_j G_ij.
        together: [n, n], pairs that may change places.
    """

    mask: Tensor
    free: Tensor
    linear: Tensor
    pairs: Tensor
    together: Tensor | None

    def exchange_(self, least: Tensor) -> Tensor:
        """Exchange until no pair gains more than `least` [R]; the rows that changed."""
        energy = self.pairs.diagonal(dim1=1, dim2=2) / 2.0
        changed = torch.zeros(len(self.mask), dtype=torch.bool)
        rows = torch.arange(len(self.mask))
        size = self.mask.shape[1]
        for _ in range(size):
            back = (energy - self.linear).masked_fill(self.mask | ~self.free, inf)
            gone = (energy + self.linear).masked_fill(~self.mask, inf)
            change = back[:, :, None] + gone[:, None, :] - self.pairs
            if self.together is not None:
                change.masked_fill_(~self.together, inf)
            best, at = change.flatten(1).min(1)
            better = best < -least
            if not bool(better.any()):
                break
            changed |= better
            row, p, u = rows[better], at[better] // size, at[better] % size
            self.mask[row, p], self.mask[row, u] = True, False
            self.linear[row] += self.pairs[row, u] - self.pairs[row, p]
        return changed
