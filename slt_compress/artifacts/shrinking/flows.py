"""Flows: which output unit of which layer every position of an activation belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The units in a tensor, and what is known of their values.

    Attributes:
        units: int64 labels with the dimensions of the tensor, each of its size, or of size 1 where
            the label does not depend on it.
        constant: in the shape of `units`, the value that all positions of a label have for every
            input of the model; NaN where it is not known.
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
        mask: which of these values count; None for all.
    """

    shape: tuple[int, ...]
    flow: Flow | None = None
    weight: str | None = None
    content: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A dimension of a stored tensor that belongs to units, with a label for each position."""

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
        exact: whether a constant input adds the same number at every output position, and so can be
            moved into the bias; not so where the input is padded with zeros.
    """

    weight: str
    bias: str | None
    dim: int
    units: Tensor
    constant: Tensor
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The heads of an attention: a label for each query head and for each key-value head."""

    queries: Tensor
    keys: Tensor
    width: int


@dataclass(slots=True)
class Ledger:
    """What the walk through a graph collects: classes of units cut together, and their users."""

    uses: list[Use] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    rows: dict[str, Use] = field(default_factory=dict)
    heads: list[Heads] = field(default_factory=list)
    pins: list[tuple[Tensor, str]] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        """Make labels for new units, int64 [count]."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def pin(self, units: Tensor, reason: str) -> None:
        """Mark units that have to stay."""
        self.pins.append((torch.tensor(sorted(set(units.reshape(-1).tolist()))), reason))

    def join(self, left: Tensor, right: Tensor) -> None:
        """Join units that are cut together or not at all, position by position (broadcast)."""
        sides = (spread(side, other).reshape(-1) for side, other in ((left, right), (right, left)))
        for a, b in set(zip(*(side.tolist() for side in sides), strict=True)):
            self._parents[self._root(a)] = self._root(b)

    def join_along(self, units: Tensor, dim: int) -> Tensor:
        """Join all units along a dimension; returns the labels with size 1 there."""
        first = units.narrow(dim, 0, 1)
        self.join(units, first)
        return first

    def roots(self) -> Tensor:
        """The class of every label, int64 [labels]."""
        roots = [self._root(label) for label in range(len(self._parents))]
        return torch.tensor(roots, dtype=torch.int64)

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label


def spread(tensor: Tensor, other: Tensor) -> Tensor:
    """Repeat a tensor where `other` has more positions, as broadcasting does."""
    return tensor + torch.zeros_like(other, dtype=tensor.dtype)


def unknown(units: Tensor) -> Tensor:
    """Constants that are not known for any label."""
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
    """A flow from labels at every position, with size 1 along dimensions that do not matter."""
    for dim, size in enumerate(units.shape):
        first = units.narrow(dim, 0, 1) if size else units
        if size > 1 and bool((units == first).all()):
            units = first
    return Flow(units=units, constant=fitted(constant, units))
