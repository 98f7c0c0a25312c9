"""Units in flight: which output unit of which layer every position of an activation belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The units in a tensor, and what is known of their values.

    Attributes:
        units: int64 labels; as many dimensions as the tensor, each of its size, or 1 where the
            label does not depend on it.
        constant: of the shape of `units`: the value that all positions of a label have for every
            input of the model; NaN where that is not known.
    """

    units: Tensor
    constant: Tensor

    @property
    def varying(self) -> tuple[int, ...]:
        """The dimensions along which the label changes."""
        return tuple(dim for dim, size in enumerate(self.units.shape) if size > 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor of the graph: an activation, with or without units, or a stored tensor.

    Attributes:
        shape: its sizes.
        flow: its units, where it has some.
        weight: the name of a stored tensor.
        content: the values of a stored tensor.
        mask: which of these count; None for all.
    """

    shape: tuple[int, ...]
    flow: Flow | None = None
    weight: str | None = None
    content: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A dimension of a stored tensor that belongs to units, one label for each position."""

    name: str
    dim: int
    units: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A matrix or convolution that sums over units.

    Attributes:
        weight, bias: names of its tensors; no bias is None.
        dim: the dimension of the weight that is summed over.
        units, constant: label and known value of every column.
        exact: whether a constant input adds the same number to every output, so that it can move
            into the bias; not so where zeros are padded around it.
    """

    weight: str
    bias: str | None
    dim: int
    units: Tensor
    constant: Tensor
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The heads of an attention: a label of each query head and of each key-value head."""

    queries: Tensor
    keys: Tensor
    width: int


@dataclass(slots=True)
class Ledger:
    """What the walk through a graph finds: classes of units that go together, and their users."""

    uses: list[Use] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    rows: dict[str, Use] = field(default_factory=dict)
    heads: list[Heads] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        """Make labels of new units, int64 [count]."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def pin(self, units: Tensor, reason: str) -> None:
        """Units that have to stay."""
        self.pins.append((torch.tensor(sorted(set(units.reshape(-1).tolist()))), reason))

    def join(self, left: Tensor, right: Tensor) -> None:
        """Units that stay or go together, position by position (broadcast)."""
        sides = (spread(side, other).reshape(-1) for side, other in ((left, right), (right, left)))
        for a, b in set(zip(*(side.tolist() for side in sides), strict=True)):
            self._parents[self._root(a)] = self._root(b)

    def join_along(self, units: Tensor, dim: int) -> Tensor:
        """Join all units along a dimension; gives the labels without it (size 1)."""
        first = units.narrow(dim, 0, 1)
        self.join(units, first)
        return first

    def roots(self) -> Tensor:
        """The class of every label, int64 [labels]."""
        found = [self._root(label) for label in range(len(self._parents))]
        return torch.tensor(found, dtype=torch.int64)

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label


def spread(tensor: Tensor, other: Tensor) -> Tensor:
    """Repeat a tensor where `other` has more positions, as broadcasting does."""
    return tensor + torch.zeros_like(other, dtype=tensor.dtype)


def unknown(units: Tensor) -> Tensor:
    """No known constant for any of the labels."""
    return torch.full(units.shape, torch.nan)


def aligned(tensor: Tensor, dims: int) -> Tensor:
    """Put dimensions of size 1 in front, as broadcasting does."""
    return tensor.reshape((1,) * (dims - tensor.dim()) + tuple(tensor.shape))


def fitted(constant: Tensor, units: Tensor) -> Tensor:
    """A constant in the shape of `units`; NaN where it changes and the label does not."""
    for dim, size in enumerate(units.shape):
        if size == 1 and constant.shape[dim] > 1:
            first = constant.narrow(dim, 0, 1)
            same = (constant == first).all(dim, keepdim=True)
            constant = torch.where(same, first, torch.nan)
    return constant.expand(units.shape).clone()


def compressed(units: Tensor, constant: Tensor) -> Flow:
    """A flow from labels at every position: dimensions that do not matter get the size 1."""
    for dim, size in enumerate(units.shape):
        first = units.narrow(dim, 0, 1) if size else units
        if size > 1 and bool((units == first).all()):
            units = first
    return Flow(units=units, constant=fitted(constant, units))
