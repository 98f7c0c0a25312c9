"""Exchanges: lower the output error of a layer by exchanging kept weights for removed ones.

A layer is a matrix `weight` [R, C] of R outputs over C inputs; `gram` [C, C] is the second moment
of its inputs, X'X / N. With d = (1 - mask) * weight, the removed part, a row's error is d G d', the
mean square of what its output misses. Rows do not interact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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

    def of(self, rows: slice | Tensor) -> Bounds:
        """The same for some of the rows."""
        return self if self.allowed is None else replace(self, allowed=self.allowed[rows])


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
        pool: candidates a side; where there are groups, columns whose groups are candidates.
    """
    rows = [
        _exchanged(weight[at], mask[at], gram, bounds.of(at), pool)
        for at in _slices(len(weight), _ROWS)
    ]
    return torch.cat(rows)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _exchanged(weight: Tensor, mask: Tensor, gram: Tensor, bounds: Bounds, pool: int) -> Tensor:
    mask = mask.clone()
    active = torch.arange(len(weight))
    before = row_errors(weight, mask, gram)
    first = mask.clone()
    least = before.to(weight.dtype) * precision(weight.dtype)
    while active.numel():
        part = bounds.of(active)
        kept, changed = _round(weight[active], mask[active], gram, part, pool, least[active])
        mask[active] = kept
        active = active[changed]
    worse = row_errors(weight, mask, gram) > before
    mask[worse] = first[worse]
    return mask


def precision(dtype: torch.dtype) -> float:
    """Share of a row's error below which a change is rounding."""
    return float(torch.finfo(dtype).eps) * 32.0


def costs(
    weight: Tensor, mask: Tensor, gram: Tensor, allowed: Tensor | None
) -> tuple[Tensor, Tensor]:
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
    together = None
    if bounds.group:
        # as many columns as without groups; the best exchange of every group is known to all
        groups = max(1, pool // bounds.group)
        p, u, together = _grouped_candidates(weight, mask, back, gone, gram, bounds.group, groups)
    else:
        size = min(pool, weight.shape[1])
        p, u = back.topk(size, largest=False)[1], gone.topk(size, largest=False)[1]
    candidates = _Candidates(
        back=back.gather(1, p), gone=gone.gather(1, u), pp=_pairs(weight, gram, p, p),
        pu=_pairs(weight, gram, p, u), uu=_pairs(weight, gram, u, u), together=together,
    )  # fmt: skip
    came, went = candidates.exchange_(least)
    # a side that is short of candidates holds columns of the other one too: they stay as they are
    mask = mask.scatter(1, p, mask.gather(1, p) | came)
    mask = mask.scatter(1, u, mask.gather(1, u) & ~went)
    return mask, came.any(1)


def _pairs(weight: Tensor, gram: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """2 w_i w_j G_ij of two sets of columns of each row, [R, n, m]."""
    pairs = gram[first[:, :, None], second[:, None, :]]
    pairs.mul_(weight.gather(1, first)[:, :, None])
    return pairs.mul_(weight.gather(1, second)[:, None, :] * 2.0)


def _grouped_candidates(
    weight: Tensor, mask: Tensor, back: Tensor, gone: Tensor, gram: Tensor, group: int, pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of the `pool` groups in which one exchange lowers the error most.

    Removed ones, kept ones, and which of them are in the same group. All groups keep as many.
    """
    rows, columns = weight.shape
    shape = (rows, columns // group, group)
    w, a, b = weight.reshape(shape), back.reshape(shape), gone.reshape(shape)
    blocks = gram.reshape(shape[1], group, shape[1], group).diagonal(dim1=0, dim2=2)
    best = torch.full(shape[:2], inf, dtype=weight.dtype, device=weight.device)
    for i in range(group):
        for j in range(group):
            if i != j:
                cross = 2.0 * w[..., i] * w[..., j] * blocks[i, j]
                best = torch.minimum(best, a[..., i] + b[..., j] - cross)
    chosen = best.topk(min(pool, shape[1]), largest=False)[1]
    kept = mask.reshape(shape).gather(1, chosen[:, :, None].expand(-1, -1, group))
    # removed columns of each group first
    order = kept.to(torch.uint8).argsort(dim=2, stable=True) + chosen[:, :, None] * group
    removed = group - int(mask[0, :group].sum())
    number = torch.arange(chosen.shape[1], device=weight.device)
    together = (
        number.repeat_interleave(removed)[:, None]
        == number.repeat_interleave(group - removed)[None, :]
    )
    return order[:, :, :removed].flatten(1), order[:, :, removed:].flatten(1), together


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """What the exchanges among n removed and m kept candidates of every row cost.

    Attributes:
        back, gone: [R, n] and [R, m], what each adds to the error of its row alone.
        pp, pu, uu: [R, n, n], [R, n, m] and [R, m, m], 2 w_i w_j G_ij.
        together: [n, m], which pairs may change places; None: all.
    """

    back: Tensor
    gone: Tensor
    pp: Tensor
    pu: Tensor
    uu: Tensor
    together: Tensor | None

    def exchange_(self, least: Tensor) -> tuple[Tensor, Tensor]:
        """Exchange until no pair gains more than `least` [R]; each candidate once at most.

        Gives which came back, [R, n], and which went, [R, m].
        """
        came, went = (torch.zeros_like(c, dtype=torch.bool) for c in (self.back, self.gone))
        rows = torch.arange(len(came), device=came.device)
        live = self
        while len(rows):
            best, at = live._best()
            better = best < -least
            count = int(better.count_nonzero())
            if 2 * count < len(rows):
                rows, at, least = rows[better], at[better], least[better]
                live, better = live._of(better), better[better]
            p, u = at[better] // went.shape[1], at[better] % went.shape[1]
            came[rows[better], p], went[rows[better], u] = True, True
            live._apply_(better.nonzero().reshape(-1), p, u)
        return came, went

    def _best(self) -> tuple[Tensor, Tensor]:
        """The lowest change of each row, and its place in [n, m]."""
        change = (self.back[:, :, None] - self.pu).add_(self.gone[:, None, :])
        if self.together is not None:
            change.masked_fill_(~self.together, inf)
        best, at = change.flatten(1).min(1)
        return best, at

    def _of(self, rows: Tensor) -> _Candidates:
        return replace(
            self, back=self.back[rows], gone=self.gone[rows], pp=self.pp[rows], pu=self.pu[rows],
            uu=self.uu[rows],
        )  # fmt: skip

    def _apply_(self, rows: Tensor, p: Tensor, u: Tensor) -> None:
        """Let p come back and u go in some rows, and update what the others cost then.

        2 w_j c_j changes by 2 w_j (w_u G_uj - w_p G_pj).
        """
        self.back[rows] -= self.pu[rows, :, u] - self.pp[rows, p]
        self.gone[rows] += self.uu[rows, u] - self.pu[rows, p]
        self.back[rows, p], self.gone[rows, u] = inf, inf
