"""Input orders: which inputs of a weight share a group of N:M, chosen so that little is lost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# So many rows at most decide; of more, evenly spaced ones. So many groups at most are looked at
# together; of more, a random part.
_ROWS, _GROUPS = 1024, 256
# Sweeps over the places of a group at most, and the share of what is kept that one must gain.
_SWEEPS = 8
_LEAST = 1e-4


def as_order(value: object, shape: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """A JSON list of the numbers from 0 on, each once; None for anything else.

    With a shape, there are as many as one of its sizes.
    """
    if not isinstance(value, list | tuple) or not all(type(place) is int for place in value):
        return None
    if shape is not None and len(value) not in shape:
        return None
    return tuple(value) if sorted(value) == list(range(len(value))) else None


def input_order(losses: Tensor, kept: int, size: int) -> tuple[int, ...]:
    """An order of the inputs in which N:M costs less than in their own.

    Inputs are dealt to the groups by what they cost in all rows, the largest first. Then inputs
    change places between groups as long as what the masks keep grows: of one place of some groups
    at a time, every pair of groups for which the exchange is best on both sides. (RIA, Zhang et
    al., ICLR 2024, deals in the same way and assigns the inputs of a place by the Hungarian
    algorithm.) No order is worse than the inputs' own, in the rows that decide.

    Args:
        losses: [R, C], what it costs to remove each weight alone; at least 0.
        kept, size: N and M; M divides C.
    """
    rows = losses[:: -(-len(losses) // _ROWS)].float()
    rank = rows.sum(0).argsort(descending=True, stable=True)
    groups = rank.view(size, -1).T.contiguous()
    generator = torch.Generator().manual_seed(0)
    best = _held(rows, groups, kept)
    for _ in range(_SWEEPS):
        for part in torch.split(torch.randperm(len(groups), generator=generator), _GROUPS):
            groups[part] = _exchanged(rows, groups[part], kept)
        held = _held(rows, groups, kept)
        if held - best < _LEAST * held:
            break
        best = held
        shuffled = torch.rand(groups.shape, generator=generator).argsort(1)
        groups = groups.gather(1, shuffled)
    own = torch.arange(rows.shape[1]).view(-1, size)
    chosen = groups if _held(rows, groups, kept) > _held(rows, own, kept) else own
    return tuple(chosen.sort(1)[0].flatten().tolist())


def _held(rows: Tensor, groups: Tensor, kept: int) -> float:
    """The sum of the `kept` largest losses of each group in each row."""
    return float(rows[:, groups].topk(kept, 2)[0].sum(dtype=torch.float64))


def _exchanged(rows: Tensor, groups: Tensor, kept: int) -> Tensor:
    """Some groups after exchanges at each of their places in turn."""
    for place in range(groups.shape[1]):
        _exchange_(rows, groups, kept, place)
    return groups


def _exchange_(rows: Tensor, groups: Tensor, kept: int, place: int) -> None:
    """Let the inputs at one place of each group [K, M] change groups while that gains.

    A group whose other inputs have the N-th largest loss b keeps max(x - b, 0) more in a row where
    the input at the place has the loss x. Summed over the rows that is half of
    sum|x - b| + sum(x - b).
    """
    losses = rows[:, groups]
    at, others = losses[:, :, place], [i for i in range(groups.shape[1]) if i != place]
    bar = losses[:, :, others].topk(kept, 2)[0][:, :, -1]
    apart = torch.cdist(bar.T.contiguous(), at.T.contiguous(), p=1.0)
    gain = (apart + at.sum(0)[None, :] - bar.sum(0)[:, None]) / 2  # [group, input]
    least = _LEAST * float(gain.diagonal().sum()) / len(gain) ** 2
    holder, number = torch.arange(len(gain)), torch.arange(len(gain))
    while True:
        own = gain.diagonal()
        change = gain + gain.T - own[:, None] - own[None, :]
        most, partner = change.max(1)
        first = ((partner[partner] == number) & (number < partner) & (most > least)).nonzero()[:, 0]
        if not len(first):
            break
        here, there = torch.cat([first, partner[first]]), torch.cat([partner[first], first])
        gain[:, here], holder[here] = gain[:, there], holder[there]
    groups[:, place] = groups[holder, place]
