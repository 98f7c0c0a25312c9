"""Exchanges between the rows of a layer, which gives rows that need it more of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from slt_compress.gates.exchanges import ANYWHERE, Bounds, exchange_in_rows, precision, row_errors


def exchange_across_rows(
    weight: Tensor, mask: Tensor, gram: Tensor, bounds: Bounds = ANYWHERE, *, pool: int = 32
) -> Tensor:
    """The mask after exchanges between rows and within them; the layer keeps its count.

    Rows do not interact: what comes back in one row and what goes in another change the sum of
    the errors by the sum of what each costs alone. Rounds of such exchanges and exchanges within
    the rows that they touched alternate until no two rows gain.

    Args:
        weight, mask, gram, bounds, pool: as for `exchange_in_rows`; without groups.
    """
    mask = mask.clone()
    least = row_errors(weight, mask, gram).to(weight.dtype) * precision(weight.dtype)
    while True:
        rows = _Rows.of(weight, mask, gram, bounds.allowed)
        touched = rows.exchange_(least)
        mask = rows.mask
        at = touched.nonzero().reshape(-1)
        if not len(at):
            return mask
        mask[at] = exchange_in_rows(weight[at], mask[at], gram, bounds.of(at), pool=pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of a layer and what each weight costs, [R, C] each, changed in place.

    Attributes:
        weight, mask, gram: as for `exchange_in_rows`.
        allowed: what may come back; None: all.
        energy: w_j^2 G_jj.
        cross: 2 w_j c_j, c = G d with the removed part d of the row.
    """

    weight: Tensor
    mask: Tensor
    gram: Tensor
    allowed: Tensor | None
    energy: Tensor
    cross: Tensor

    @staticmethod
    def of(weight: Tensor, mask: Tensor, gram: Tensor, allowed: Tensor | None) -> _Rows:
        """What the weights cost behind a mask, which is changed later."""
        cross = 2.0 * weight * (weight.masked_fill(mask, 0.0) @ gram)
        energy = weight.square() * gram.diagonal()
        return _Rows(
            weight=weight, mask=mask, gram=gram, allowed=allowed, energy=energy, cross=cross
        )

    def exchange_(self, least: Tensor) -> Tensor:
        """Exchange until no two rows gain more than their `least` [R]; which rows changed."""
        rows = torch.arange(len(self.mask), device=self.mask.device)
        touched = torch.zeros_like(rows, dtype=torch.bool)
        (come, p), (go, u) = self._cheapest(rows)
        while True:
            receivers, givers = _paired(come + least, go + least)
            if not len(receivers):
                return touched
            self._move_(receivers, p[receivers], keep=True)
            self._move_(givers, u[givers], keep=False)
            changed = torch.cat([receivers, givers])
            touched[changed] = True
            (come[changed], p[changed]), (go[changed], u[changed]) = self._cheapest(changed)

    def _cheapest(self, rows: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What comes back at the least cost in each of some rows, and what goes at the least."""
        mask, energy, cross = self.mask[rows], self.energy[rows], self.cross[rows]
        fixed = mask if self.allowed is None else mask | ~self.allowed[rows]
        back = (energy - cross).masked_fill_(fixed, inf).min(1)
        gone = (energy + cross).masked_fill_(~mask, inf).min(1)
        return (back[0], back[1]), (gone[0], gone[1])

    def _move_(self, rows: Tensor, columns: Tensor, *, keep: bool) -> None:
        """Let a weight come back in each of some rows, or let it go."""
        self.mask[rows, columns] = keep
        moved = self.weight[rows, columns] * (-2.0 if keep else 2.0)
        self.cross[rows] += self.weight[rows] * moved[:, None] * self.gram[columns]


def _paired(come: Tensor, go: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that receive a weight and rows that give one, [n] each; no row is in both.

    The i-th cheapest of each side are a pair, as long as their costs add up to less than 0. A
    row that could be on both sides is on the one where it stands further in front; if that leaves
    no pair, the best of all pairs is taken.
    """
    receive, give = come.argsort(stable=True), go.argsort(stable=True)
    receives = receive.argsort() <= give.argsort()
    receivers, givers = receive[receives[receive]], give[~receives[give]]
    size = min(len(receivers), len(givers))
    receivers, givers = receivers[:size], givers[:size]
    count = int((come[receivers] + go[givers] < 0.0).long().cumprod(0).sum())
    if count:
        return receivers[:count], givers[:count]
    # the best pair of two different rows is among the first two of each side
    change = come[receive[:2], None] + go[None, give[:2]]
    change[receive[:2, None] == give[None, :2]] = inf
    at = int(change.argmin())
    found = slice(0, int(bool(change.flatten()[at] < 0.0)))
    columns = change.shape[1]
    return receive[at // columns][None][found], give[at % columns][None][found]
