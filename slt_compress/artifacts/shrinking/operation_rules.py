"""Rules of operations without weights of their own: one function per kind.

An operation that mixes units pins them: they cannot be cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from slt_compress.artifacts.shrinking.flows import (
    Flow,
    Ledger,
    Use,
    Value,
    aligned,
    compressed,
    fitted,
    spread,
    unknown,
)


def operation(node: fx.Node) -> str:
    """The plain name of an operation: `linear` of `aten.linear.default`."""
    target = node.target
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", target))


def pinned(ledger: Ledger, node: fx.Node, values: list[Value], reason: str) -> Any:
    """Pin all units of `values`; the result has no units."""
    for value in values:
        if value.flow is not None:
            ledger.pin(value.flow.units, reason)
    return plain(node.meta.get("val"))


def values_in(nested: Any) -> Iterator[Value]:
    """All tensors among arguments."""
    if isinstance(nested, Value):
        yield nested
    elif isinstance(nested, Mapping):
        for entry in nested.values():
            yield from values_in(entry)
    elif isinstance(nested, list | tuple):
        for entry in nested:
            yield from values_in(entry)


def plain(result: Any, flows: Any = None) -> Any:
    """The value of a node with this result, with flows where there are some."""
    if isinstance(result, list | tuple):
        given = flows if isinstance(flows, list | tuple) else [None] * len(result)
        return tuple(plain(entry, flow) for entry, flow in zip(result, given, strict=True))
    return Value(shape=tuple(result.shape), flow=flows) if isinstance(result, Tensor) else result


def _replaced(nested: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(nested, Value):
        return next(tensors)
    if isinstance(nested, Mapping):
        return {key: _replaced(entry, tensors) for key, entry in nested.items()}
    if isinstance(nested, list | tuple):
        return type(nested)(_replaced(entry, tensors) for entry in nested)
    return nested


def _called(node: fx.Node, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
    """Run the operation itself on other tensors."""
    if not callable(node.target):
        raise TypeError(f"{node.target} is not an operation")
    rest = iter(tensors)
    return node.target(*_replaced(args, rest), **_replaced(kwargs, rest))


def elementwise(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Positions meet positions: the units of several tensors are joined."""
    values = list(values_in((args, kwargs)))
    dims = len(node.meta["val"].shape)
    units = None
    for value in values:
        if value.flow is not None:
            own = aligned(value.flow.units, dims)
            if units is not None:
                ledger.join(units, own)
                own = spread(units, own)
            units = own
    if units is None:
        return plain(node.meta["val"])
    units = units.clone()
    for value in values:
        _meet(ledger, units, value)
    constant = _constant(node, args, kwargs, values, dims)
    return plain(node.meta["val"], Flow(units=units, constant=fitted(constant, units)))


def _meet(ledger: Ledger, units: Tensor, value: Value) -> None:
    """A tensor with positions of its own along units: a weight follows them, others join them."""
    shape = (1,) * (units.dim() - len(value.shape)) + value.shape
    own = units.shape if value.flow is None else aligned(value.flow.units, units.dim()).shape
    fixed = [
        dim
        for dim, size in enumerate(units.shape)
        if size > 1 and shape[dim] > 1 and (value.flow is None or own[dim] == 1)
    ]
    varying = [dim for dim, size in enumerate(units.shape) if size > 1]
    if value.weight is not None and fixed == varying and len(fixed) == 1:
        dim = fixed[0] - (units.dim() - len(value.shape))
        ledger.uses.append(Use(name=value.weight, dim=dim, units=units.reshape(-1)))
        return
    for dim in fixed:
        ledger.join_along(units, dim)


def _constant(node: fx.Node, args: Any, kwargs: Any, values: list[Value], dims: int) -> Tensor:
    """What the operation makes of known values; 0 times an unknown value is 0."""
    tensors = []
    for value in values:
        if value.flow is not None:
            tensors.append(aligned(value.flow.constant, dims))
        elif value.content is not None:
            tensors.append(aligned(value.content.float(), dims))
        else:
            tensors.append(torch.full((1,) * dims, torch.nan))
    result: Tensor = _called(node, args, kwargs, tensors).float()
    lost = torch.zeros(result.shape, dtype=torch.bool)
    for tensor in tensors:
        lost = lost | tensor.isnan()
    result = result.masked_fill(lost, torch.nan)
    result = result.masked_fill(result.isinf(), torch.nan)
    if operation(node) == "mul":
        for tensor in tensors:
            result = result.masked_fill(tensor == 0, 0.0)
    return result


def moving(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Positions only move, and their labels with them."""
    values = list(values_in((args, kwargs)))
    labels, constants = [], []
    for value in values:
        flow = value.flow
        if flow is None:
            units = ledger.fresh(1)
            ledger.pin(units, "is joined with a tensor that has no units")
            flow = Flow(units=units.reshape((1,) * len(value.shape)), constant=torch.tensor(0.0))
            flow = Flow(units=flow.units, constant=unknown(flow.units))
        labels.append(flow.units.expand(value.shape).contiguous())
        constants.append(flow.constant.expand(value.shape).contiguous())
    moved = _called(node, args, kwargs, labels)
    known = _called(node, args, kwargs, constants)
    if isinstance(moved, list | tuple):
        flows: Any = [compressed(*pair) for pair in zip(moved, known, strict=True)]
    else:
        flows = compressed(moved, known)
    return plain(node.meta["val"], flows)


def getitem(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """One of several results."""
    return args[0][args[1]]


def pooling(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Windows over the dimensions after the channels."""
    value = args[0]
    flow = value.flow
    spatial = int(operation(node).rpartition("pool")[2][0])
    if any(size > 1 for size in flow.units.shape[-spatial:]):
        return pinned(ledger, node, [value], f"goes through {operation(node)}")
    constant = flow.constant
    around = args[3] if len(args) > 3 else kwargs.get("padding", 0)
    if operation(node).startswith("avg") and any_of(around):  # the zeros of the padding count
        constant = constant.masked_fill(constant != 0, torch.nan)
    return plain(node.meta["val"], Flow(units=flow.units, constant=constant))


def any_of(widths: Any) -> bool:
    """Whether a padding adds anything."""
    return any(widths) if isinstance(widths, list | tuple) else bool(widths)


def padding(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Padding around the dimensions after the channels."""
    value, widths = args[0], args[1]
    flow = value.flow
    touched = range(len(value.shape) - (len(widths) + 1) // 2, len(value.shape))
    fill = args[2] if len(args) > 2 else 0
    if set(touched) & set(flow.varying):
        return pinned(ledger, node, [value], "is padded")
    constant = flow.constant.masked_fill(flow.constant != fill, torch.nan)
    return plain(node.meta["val"], Flow(units=flow.units, constant=constant))


def mean(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """A mean over dimensions without units; a mean over units mixes them."""
    value, named = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
    flow, count = value.flow, len(value.shape)
    dims = range(count) if not named else named if isinstance(named, list | tuple) else [named]
    gone = sorted({dim % count for dim in dims}, reverse=True)
    if set(gone) & set(flow.varying):
        return pinned(ledger, node, [value], "is averaged over units")
    units, constant = flow.units, flow.constant
    if len(node.meta["val"].shape) < count:
        for dim in gone:
            units, constant = units.squeeze(dim), constant.squeeze(dim)
    return plain(node.meta["val"], Flow(units=units, constant=constant))


def along_last(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Softmax and layer norms, which mix the positions of some dimensions and keep the rest."""
    value, second = args[0], args[1]
    flow, count = value.flow, len(value.shape)
    mixed = [second % count] if isinstance(second, int) else range(count - len(second), count)
    others = [entry for entry in values_in((args[1:], kwargs)) if entry.flow is not None]
    if set(mixed) & set(flow.varying) or others:
        return pinned(ledger, node, [value, *others], f"goes through {operation(node)}")
    return plain(node.meta["val"], Flow(units=flow.units, constant=unknown(flow.units)))
