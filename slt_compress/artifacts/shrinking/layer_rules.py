"""Rules of layers: matrices and convolutions end units and begin others, norms follow them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from slt_compress.artifacts.shrinking.flows import (
    Consumer,
    Flow,
    Heads,
    Ledger,
    Use,
    Value,
    spread,
    unknown,
)
from slt_compress.artifacts.shrinking.operation_rules import any_of, pinned, plain, values_in

# Defaults of the arguments of a convolution, from its bias on: stride, padding, dilation, groups.
_CONVOLUTION: tuple[Any, ...] = (None, None, None, 1, 0, 1, 1)


def linear(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """`x @ weight.T + bias`: units of the last dimension end, and one begins per row."""
    value, weight, bias = (*args, None)[:3]
    return _matrix(ledger, node, value, weight, bias, outputs=0)


def addmm(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """`bias + x @ weight`, as in transformers' Conv1D: one unit begins per column."""
    bias, value, weight = args[:3]
    if kwargs:
        return pinned(ledger, node, list(values_in(args)), "goes through addmm with factors")
    return _matrix(ledger, node, value, weight, bias, outputs=1)


def _matrix(
    ledger: Ledger, node: fx.Node, value: Value, weight: Value, bias: Value | None, *, outputs: int
) -> Any:
    if weight.weight is None or (bias is not None and bias.weight is None):
        known = [entry for entry in (value, weight, bias) if entry is not None]
        return pinned(ledger, node, known, "goes into a matrix that is computed")
    last = len(value.shape) - 1
    inputs = _summed(ledger, value, last)
    content, mask = _turned(weight, outputs)
    if inputs is not None:
        _consume(ledger, weight, bias, 1 - outputs, inputs, exact=True)
    constant = _row_constants(content, mask, bias, inputs, exact=True)
    return _produce(ledger, node, weight, bias, outputs, constant, dim=last)


def convolution(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Channels end and begin as in a matrix; in a depthwise convolution they continue."""
    value, weight, bias, _, padding, _, groups = tuple(args) + _CONVOLUTION[len(args) :]
    if weight.weight is None or (bias is not None and bias.weight is None):
        known = [entry for entry in (value, weight, bias) if entry is not None]
        return pinned(ledger, node, known, "goes into a convolution that is computed")
    exact = padding == "valid" or not (isinstance(padding, str) or any_of(padding))
    inputs = _summed(ledger, value, 1)
    if groups != 1:
        return _grouped(ledger, node, value, weight, bias, inputs, groups=groups, exact=exact)
    content, mask = _turned(weight, 0)
    if inputs is not None:
        _consume(ledger, weight, bias, 1, inputs, exact=exact)
    constant = _row_constants(content, mask, bias, inputs, exact=exact)
    return _produce(ledger, node, weight, bias, 0, constant, dim=1)


def _grouped(
    ledger: Ledger, node: fx.Node, value: Value, weight: Value, bias: Value | None,
    inputs: Flow | None, *, groups: int, exact: bool,
) -> Any:  # fmt: skip
    if inputs is None or weight.content is None or not groups == value.shape[1] == weight.shape[0]:
        return pinned(ledger, node, [value], "goes into a grouped convolution")
    labels, constant = inputs.units.reshape(-1), inputs.constant.reshape(-1)
    for stored in (weight, bias):
        if stored is not None and stored.weight is not None:
            ledger.uses.append(Use(name=stored.weight, dim=0, units=labels))
    if weight.weight is not None:
        ledger.rows[weight.weight] = Use(name=weight.weight, dim=0, units=labels)
    content, mask = _turned(weight, 0)
    added = bias.content.float() if bias is not None and bias.content is not None else 0.0
    total = (content * mask).flatten(1).sum(1)
    from_input = torch.where(constant == 0, 0.0, constant * total if exact else torch.nan)
    outputs = torch.where(mask.flatten(1).any(1), from_input, 0.0) + added
    return plain(node.meta["val"], _laid(labels, outputs, len(value.shape), 1))


def batch_norm(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Its tensors follow the channels; in eval mode it is a linear function of each channel."""
    value = args[0]
    flow, stored = value.flow, [entry for entry in args[1:5] if entry is not None]
    known = all(isinstance(entry, Value) and entry.content is not None for entry in stored)
    if flow.varying != (1,) or not known or len(stored) < 2:
        return pinned(ledger, node, [value], "goes through a batch norm")
    labels = flow.units.reshape(-1)
    ledger.uses += [Use(name=entry.weight, dim=0, units=labels) for entry in stored]
    scale, shift, mean, variance = (
        None if entry is None else entry.content.float() for entry in args[1:5]
    )
    outputs = torch.nn.functional.batch_norm(
        flow.constant.reshape(1, -1), mean, variance, scale, shift, eps=args[-1]
    )
    result = _laid(labels, outputs.reshape(-1), len(value.shape), 1)
    rest = node.meta["val"][1:]
    return (plain(node.meta["val"][0], result), *(plain(entry) for entry in rest))


def attention(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Heads are cut whole, together with the key-value heads that they share."""
    flows = [value.flow for value in args[:3]]
    others = list(values_in((args[3:], kwargs)))
    fit = all(f is not None and set(f.varying) <= {1, 3} and f.units.dim() == 4 for f in flows)
    if not fit or any(entry.flow is not None for entry in others):
        return pinned(ledger, node, list(values_in((args, kwargs))), "goes into an attention")
    values = flows[2]
    heads = args[0].shape[1]
    labels = [
        ledger.join_along(f.units.expand(-1, size, -1, width), 3)
        for f, (_, size, _, width) in zip(flows, (entry.shape for entry in args[:3]), strict=True)
    ]
    shared = [entry.repeat_interleave(heads // entry.shape[1], 1) for entry in labels]
    for entry in shared[1:]:
        ledger.join(shared[0], entry)
    for mask in others:  # a mask per head
        if len(mask.shape) == 4 and mask.shape[1] > 1:
            ledger.pin(shared[0], "goes into an attention with a mask for each head")
    ledger.heads.append(
        Heads(queries=labels[0].reshape(-1), keys=labels[1].reshape(-1), width=args[0].shape[3])
    )
    repeated = heads // args[2].shape[1]
    units = values.units.expand(-1, args[2].shape[1], -1, args[2].shape[3])
    constant = values.constant.expand(units.shape)
    if others:  # a query that attends to nothing has no mean of constants
        constant = constant.masked_fill(constant != 0, torch.nan)
    result = Flow(
        units=units.repeat_interleave(repeated, 1),
        constant=constant.repeat_interleave(repeated, 1),
    )
    return plain(node.meta["val"], result)


def product(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """A product of two activations, as in attentions that are written out."""
    left, right = args[0], args[1]
    dims = len(node.meta["val"].shape)
    if left.flow is None or right.flow is None or dims < 3 or len(left.shape) != len(right.shape):
        return pinned(ledger, node, [left, right], "goes into a product with another activation")
    inner = (
        ledger.join_along(left.flow.units, dims - 1),
        ledger.join_along(right.flow.units, dims - 2),
    )
    ledger.join(*inner)
    rows, columns = inner[0].shape[dims - 2], inner[1].shape[dims - 1]
    if dims == 4 and left.flow.varying == (1, 3) and inner[0].shape == inner[1].shape:
        heads = (entry.reshape(-1) for entry in inner)
        ledger.heads.append(Heads(queries=next(heads), keys=next(heads), width=left.shape[3]))
    if rows > 1:
        return pinned(ledger, node, [left, right], "goes into a product with another activation")
    units = inner[1] if inner[1].numel() > 1 else inner[0]
    outer = spread(inner[0][..., :1, :1], inner[1][..., :1, :1])
    units = units.expand(*outer.shape[:-2], 1, columns)
    return plain(node.meta["val"], Flow(units=units, constant=unknown(units)))


def _summed(ledger: Ledger, value: Value, dim: int) -> Flow | None:
    """The units along the dimension that a layer sums over; units along others are pinned."""
    flow = value.flow
    if flow is None:
        return None
    if flow.varying != (dim,):
        ledger.pin(flow.units, "does not lie along the inputs of the next layer")
        return None
    return flow


def _turned(weight: Value, outputs: int) -> tuple[Tensor, Tensor]:
    """Content and mask of a weight as [outputs, inputs, …]."""
    content = torch.empty(0) if weight.content is None else weight.content.float()
    mask = weight.mask if weight.mask is not None else torch.ones(content.shape, dtype=torch.bool)
    return content.transpose(0, outputs), mask.transpose(0, outputs)


def _consume(
    ledger: Ledger, weight: Value, bias: Value | None, dim: int, inputs: Flow, *, exact: bool
) -> None:
    labels = inputs.units.reshape(-1)
    name = str(weight.weight)
    ledger.uses.append(Use(name=name, dim=dim, units=labels))
    ledger.consumers.append(
        Consumer(
            weight=name, bias=None if bias is None else bias.weight, dim=dim, units=labels,
            constant=inputs.constant.reshape(-1), exact=exact,
        )
    )  # fmt: skip


def _row_constants(
    content: Tensor, mask: Tensor, bias: Value | None, inputs: Flow | None, *, exact: bool
) -> Tensor:
    """Outputs that do not depend on the input: their bias plus what constant inputs add."""
    columns = content.shape[1]
    given = torch.full((columns,), torch.nan)
    if inputs is not None:
        given = inputs.constant.reshape(-1)
    usable = given == 0 if not exact else ~given.isnan()
    weights = (content * mask).flatten(2).sum(2) if content.dim() > 2 else content * mask
    seen = mask.flatten(2).any(2) if mask.dim() > 2 else mask
    open_rows = (seen & ~usable).any(1)
    added = (weights.double() * torch.where(usable, given, 0.0).double()).sum(1)
    if bias is not None and bias.content is not None:
        added = added + bias.content.double()
    return added.masked_fill(open_rows | added.isinf(), torch.nan).float()


def _produce(
    ledger: Ledger, node: fx.Node, weight: Value, bias: Value | None, outputs: int,
    constant: Tensor, *, dim: int,
) -> Value:  # fmt: skip
    labels = ledger.fresh(len(constant))
    name = str(weight.weight)
    ledger.rows[name] = Use(name=name, dim=outputs, units=labels)
    ledger.uses.append(ledger.rows[name])
    if bias is not None and bias.weight is not None:
        ledger.uses.append(Use(name=bias.weight, dim=0, units=labels))
    result = _laid(labels, constant, len(node.meta["val"].shape), dim)
    value: Value = plain(node.meta["val"], result)
    return value


def _laid(labels: Tensor, constant: Tensor, dims: int, dim: int) -> Flow:
    """A flow whose units lie along one dimension."""
    shape = [1] * dims
    shape[dim] = len(labels)
    return Flow(units=labels.reshape(shape), constant=constant.float().reshape(shape))
