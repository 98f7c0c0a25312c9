"""Modules of parts that change as they run, or that torch makes classes for; all are 6 to 6."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

SIZE = 6


class Symmetric(nn.Module):
    """A parametrization of the user's own, with a buffer that it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reads", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.reads += 1
        return weight.triu() + weight.triu(1).T


class Stateful(nn.Module):
    """A linear layer beside a state that the forward pass changes in one of many ways."""

    def __init__(self, start: Callable[[Stateful], None], step: Callable[[Stateful], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)
        self.length = 1
        start(self)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        change = self.step(self)
        return self.linear(x) + (change.mean() if isinstance(change, Tensor) else 0.0)


def _grow(m: Stateful) -> Tensor:
    if m.length < 16:
        m.length += 5
        m.register_buffer("table", torch.arange(float(m.length)))
    assert len(m.table) == m.length  # the cache and its length belong together
    return m.table


def _fill(m: Stateful) -> Tensor:
    if m.table is None:
        m.table = torch.arange(3.0)
    return m.table


def _resize(m: Stateful) -> Tensor:
    m.table.resize_(m.table.numel() + 2).fill_(1.0)
    return m.table


def _data(m: Stateful) -> Tensor:
    m.table.data = torch.ones(len(m.table) + 1)
    return m.table


def _move(m: Stateful) -> Tensor:
    m.table = m.table + 1
    return m.table


def _add(m: Stateful) -> Tensor:
    m.table.add_(1)
    return m.table


def _forget(m: Stateful) -> None:
    if "table" in m._buffers:
        del m.table


def _appear(m: Stateful) -> None:
    m.register_buffer(f"late_{len(m._buffers)}", torch.ones(2), persistent=False)


def _store(m: Stateful) -> None:
    m.cache[len(m.cache)] = torch.ones(2)
    m.seen.append(len(m.seen))


def _write(m: Stateful) -> Tensor:
    m.table[:2] += 1.0
    return m.table


def _buffer(value: Tensor | None, *, persistent: bool = True) -> Callable[[Stateful], None]:
    return lambda m: m.register_buffer(
        "table", None if value is None else copy.deepcopy(value), persistent=persistent
    )


def _attribute(m: Stateful) -> None:
    m.table = torch.zeros(4)


def _containers(m: Stateful) -> None:
    m.cache, m.seen = {}, []


def _wanting(m: Stateful) -> None:
    m.register_buffer("table", torch.ones(3, requires_grad=True))


def _windows(m: Stateful) -> None:
    m.register_buffer("table", torch.arange(6.0).as_strided((3, 3), (1, 1)))


STATES: Mapping[str, tuple[Callable[[Stateful], None], Callable[[Stateful], Any]]] = {
    "registered longer": (_buffer(torch.zeros(1)), _grow),
    "none": (_buffer(None), _fill),
    "resized": (_buffer(torch.zeros(1)), _resize),
    "other data": (_buffer(torch.zeros(2)), _data),
    "replaced": (_buffer(torch.zeros(2), persistent=False), _move),
    "changed": (_buffer(torch.zeros(2)), _add),
    "forgotten": (_buffer(torch.zeros(2)), _forget),
    "new": (_buffer(torch.zeros(2)), _appear),
    "expanded": (_buffer(torch.zeros(1).expand(4)), _move),
    "windows": (_windows, _move),
    "wants gradients": (_wanting, lambda m: m.table * 2),
    "attribute": (_attribute, _write),
    "containers": (_containers, _store),
    "integers": (_buffer(torch.zeros(2, dtype=torch.int64)), lambda m: m.table.add_(1).float()),
    "booleans": (_buffer(torch.zeros(2, dtype=torch.bool)), lambda m: m.table.fill_(True).float()),
    "complex": (_buffer(torch.zeros(2, dtype=torch.complex64)), lambda m: m.table.add_(1j).abs()),
    "sparse": (_buffer(torch.eye(3).to_sparse(), persistent=False), lambda m: m.table.to_dense()),
    "nothing in it": (_buffer(torch.zeros(0)), lambda m: m.table.sum()),
}


class Recurrent(nn.Module):
    """Two cells that were copied from one another, so that they share the class torch made."""

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.first = parametrizations.weight_norm(nn.LSTM(SIZE, SIZE), "weight_hh_l0")
        self.second = copy.deepcopy(self.first)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x)[0])[0]
        return output


class Twice(nn.Module):
    """A module under two names, a tie, and a buffer of two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(SIZE, SIZE)
        self.again = self.one
        self.tied = nn.Linear(SIZE, SIZE)
        self.tied.weight = self.one.weight
        self.register_buffer("shared", torch.zeros(2))
        self.one.register_buffer("shared", self.shared)

    def forward(self, x: Tensor) -> Tensor:
        self.shared.add_(1)
        output: Tensor = self.tied(self.again(x))
        return output


def _ran(layer: nn.Module) -> nn.Module:
    """After a forward pass the weight of a hook is an attribute that autograd computed."""
    layer(torch.zeros(2, SIZE))
    return layer


def _old(make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch, and still in people's models
        return _ran(make(nn.Linear(SIZE, SIZE)))


def _pruned() -> nn.Module:
    layer = nn.Linear(SIZE, SIZE)
    prune.l1_unstructured(layer, "weight", 0.3)
    prune.l1_unstructured(layer, "bias", 0.3)
    return _ran(layer)


def _own() -> nn.Module:
    layer = nn.Linear(SIZE, SIZE)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def _on_buffer() -> nn.Module:
    layer = Stateful(_buffer(torch.ones(3, 3)), lambda m: m.table)
    parametrize.register_parametrization(layer, "table", Symmetric())
    return layer


def _clones() -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(SIZE, SIZE))
    return nn.Sequential(layer, copy.deepcopy(layer), nn.Tanh(), copy.deepcopy(layer))


def _hooked() -> nn.Module:
    layer = nn.Linear(SIZE, SIZE)
    layer.outputs = []  # type: ignore[assignment]
    layer.register_forward_hook(lambda m, args, out: m.outputs.append(out.detach()))
    layer.register_forward_pre_hook(lambda m, args: setattr(m, "last", args[0].shape))
    return layer


PARTS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(SIZE, SIZE),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(SIZE, SIZE)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(SIZE, SIZE)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(SIZE, SIZE)),
    "own parametrization": _own,
    "parametrized buffer": _on_buffer,
    "clones": _clones,
    "recurrent": Recurrent,
    "pruned": _pruned,
    "batch norm": lambda: nn.BatchNorm1d(SIZE),
    "dropout": lambda: nn.Dropout(0.5),
    "hooks": _hooked,
    "twice": Twice,
    **{name: lambda pair=pair: Stateful(*pair) for name, pair in STATES.items()},
}

# Layers whose weight a hook computes: they can be copied, and are refused by a search.
OLD: Mapping[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: _old(weight_norm),
    "spectral_norm": lambda: _old(spectral_norm),
}


def whole(module: nn.Module) -> dict[str, Any]:
    """Everything of a module: its objects by identity, and the values of its tensors."""
    found: dict[str, Any] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        found[f"{name}: class"] = type(child)
        # copying an object notes the slots of its class there
        found[f"{name}: properties"] = sorted({*vars(type(child))} - {"__slotnames__"})
        for key, value in vars(child).items():
            found[f"{name}.{key}"] = (id(value), list(_entries(value)))
            for place, tensor in _tensors(key, value):
                found[f"{name}.{place}: tensor"] = _shape(tensor)
                found[f"{name}.{place}: values"] = tensor.detach().clone()
        found[f"{name}: order"] = list(vars(child))
    return found


def _entries(value: object) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from ((key, id(entry)) for key, entry in value.items())
    elif isinstance(value, list | tuple):
        yield from map(id, value)
    elif isinstance(value, set):
        yield from sorted(value)
    elif not isinstance(value, Tensor | nn.Module):
        yield repr(value) if isinstance(value, int | float | str | None) else id(value)


def _tensors(key: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, dict | OrderedDict):
        yield from ((f"{key}.{k}", t) for k, t in value.items() if isinstance(t, Tensor))


def _shape(tensor: Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    grad = tensor.grad if tensor.is_leaf else None
    return (id(tensor), tensor.shape, strides, tensor.dtype, tensor.requires_grad, id(grad))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What is not as it was."""
    return [
        name for name in before.keys() | after.keys()
        if name not in before or name not in after or not _equal(before[name], after[name])
    ]  # fmt: skip


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.layout is not torch.strided:
            a, b = a.to_dense(), b.to_dense()
        return a.shape == b.shape and torch.equal(a, b)
    return a == b
