"""A module as it is now, to put back later whatever a forward pass or a search changes in it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from operator import is_not
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from slt_compress.storage.bits import same_bits

_P = ParamSpec("_P")
_R = TypeVar("_R")
# Containers whose own entries are put back; exactly these types, as others have rules of their own.
_CONTAINERS = (dict, OrderedDict, list, set, deque)
# What callers set around forward passes: modes, and the wrappers of accelerate.
_SET_AROUND = ("training", "forward", "_original_forward", "_is_accelerate_prepared")


class SetAround:
    """Marks a part, such as a gate, that is set between forward passes and not changed by them."""


@dataclass(frozen=True, slots=True)
class _Values:
    """A tensor object, the memory that it names, and a copy of what is there.

    The object survives a new shape (`resize_`, `set_`, `.data =`): it gets its old memory back.
    """

    tensor: Tensor
    memory: Tensor
    copy: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _Values | None:
        """None for a tensor that has no values yet."""
        if is_lazy(tensor):
            return None
        memory = tensor.detach()
        return cls(tensor, memory, _elements(memory).clone())

    def put_back(self) -> None:
        """Give the tensor its memory and values again; nothing is written that is right already."""
        if not _same_place(self.tensor, self.memory):
            self.tensor.data = self.memory
        elements = _elements(self.memory)
        if not _same_values(elements, self.copy):
            elements.copy_(self.copy)


def _elements(tensor: Tensor) -> Tensor:
    """The tensor, as one row of memory where several of its indices share an element."""
    if tensor.layout is not torch.strided or torch._debug_has_internal_overlap(tensor) == 0:
        return tensor
    lasts = ((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided((1 + sum(lasts),), (1,))


def _same_place(tensor: Tensor, memory: Tensor) -> bool:
    if tensor.layout is not torch.strided or memory.layout is not torch.strided:
        return tensor.layout is memory.layout and tensor.shape == memory.shape
    return (
        tensor.device == memory.device
        and tensor.dtype is memory.dtype
        and tensor.shape == memory.shape
        and tensor.stride() == memory.stride()
        and tensor.data_ptr() == memory.data_ptr()
    )


def _same_values(tensor: Tensor, copy: Tensor) -> bool:
    if tensor.is_meta:
        return True
    try:
        return same_bits(tensor, copy)
    except (KeyError, RuntimeError):  # complex or sparse: written again without a look
        return False


@dataclass(frozen=True, slots=True)
class _Part:
    """One module: its class, its attributes, and the entries of its own containers."""

    module: nn.Module
    kind: type
    attributes: Mapping[str, Any]
    entries: tuple[tuple[Any, Any], ...]

    @classmethod
    def of(cls, module: nn.Module, *, hooks: bool) -> _Part:
        attributes = dict(vars(module))
        entries = tuple(
            (value, value.copy())
            for key, value in attributes.items()
            if type(value) in _CONTAINERS and (hooks or "hook" not in key)
        )
        return cls(module, type(module), attributes, entries)

    def put_back(self) -> None:
        """Everything, as it was."""
        if type(self.module) is not self.kind:
            self.module.__class__ = self.kind
        if not _same_entries(vars(self.module), self.attributes):
            vars(self.module).clear()
            vars(self.module).update(self.attributes)
        self._refill()

    def put_back_state(self) -> None:
        """What a forward pass may change: no class, no mode, no hook."""
        now = vars(self.module)
        if not _same_entries(now, self.attributes):
            for key in [key for key in now if key not in self.attributes]:
                if key not in _SET_AROUND:
                    del now[key]
            now.update({k: v for k, v in self.attributes.items() if k not in _SET_AROUND})
        self._refill()

    def _refill(self) -> None:
        for container, entries in self.entries:
            if not container and not entries:
                continue
            if isinstance(container, dict):
                if not _same_entries(container, entries):
                    container.clear()
                    container.update(entries)
            elif isinstance(container, set):
                if container != entries:
                    container.clear()
                    container |= entries
            elif len(container) != len(entries) or any(map(is_not, container, entries)):
                container.clear()
                container.extend(entries)


def _same_entries(now: Mapping[Any, Any], before: Mapping[Any, Any]) -> bool:
    """Whether two mappings hold the same objects in the same order."""
    return (
        len(now) == len(before)
        and not any(map(is_not, now.values(), before.values()))
        and list(now) == list(before)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """A module as it was: the parts by themselves and not by name, as models exchange parts."""

    parts: tuple[_Part, ...]
    values: tuple[_Values, ...]
    flags: tuple[tuple[Tensor, bool, Tensor | None], ...]

    def put_back(self) -> None:
        """Put everything back: the same objects, with the same values.

        Every step is taken, also after one that fails; the first failure is raised at the end.
        """
        steps = [part.put_back for part in self.parts] + [v.put_back for v in self.values]
        _take(steps)
        for tensor, wanted, grad in self.flags:
            if tensor.requires_grad != wanted and tensor.is_leaf:
                tensor.requires_grad_(wanted)
            if tensor.is_leaf and tensor.grad is not grad:
                tensor.grad = grad

    def put_back_state(self) -> None:
        """Put back what a forward pass may change, among it the buffers; as `put_back`."""
        _take([part.put_back_state for part in self.parts] + [v.put_back for v in self.values])


def _take(steps: Iterable[Any]) -> None:
    failures: list[Exception] = []
    with torch.no_grad():
        for step in steps:
            try:
                step()
            except Exception as error:
                failures.append(error)
    if failures:
        raise failures[0]


def remember(module: nn.Module) -> Remembered:
    """All of a module but the values of its parameters, which nobody changes."""
    children = tuple(module.modules())
    tensors = tuple(_distinct(tensor for child in children for tensor in _held(child)))
    leaves = (*module.parameters(), *tensors)
    return Remembered(
        parts=tuple(_Part.of(child, hooks=True) for child in children),
        values=tuple(found for found in map(_Values.of, tensors) if found is not None),
        flags=tuple((t, t.requires_grad, t.grad if t.is_leaf else None) for t in leaves),
    )


def remember_state(module: nn.Module) -> Remembered:
    """What a forward pass may change: attributes, and buffers with their values."""
    children = tuple(c for c in module.modules() if not isinstance(c, SetAround))
    buffers = _distinct(b for child in children for b in child._buffers.values() if b is not None)
    return Remembered(
        parts=tuple(_Part.of(child, hooks=False) for child in children),
        values=tuple(found for found in map(_Values.of, buffers) if found is not None),
        flags=(),
    )


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Put a module back as it is now when the block ends."""
    before = remember(module)
    try:
        yield
    finally:
        before.put_back()


def leaves_unchanged(verb: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same function, which puts every module that it is given back as it was."""

    @wraps(verb)
    def unchanging(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with ExitStack() as stack:
            for given in (*args, *kwargs.values()):
                if isinstance(given, nn.Module):
                    stack.enter_context(unchanged(given))
            return verb(*args, **kwargs)

    return unchanging


def freeze_(module: nn.Module) -> None:
    """Let no gradient reach anything that a module holds; `Remembered` puts the flags back."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for child in module.modules():
        for tensor in _held(child):
            if tensor.requires_grad and tensor.is_leaf:
                tensor.requires_grad_(False)
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.grad_fn is not None:
                child._buffers[name] = buffer.detach()


def _held(module: nn.Module) -> Iterator[Tensor]:
    """The tensors of a module that are no parameters: buffers, and attributes down to one level."""
    yield from (buffer for buffer in module._buffers.values() if buffer is not None)
    for value in vars(module).values():
        if isinstance(value, dict):
            inner: Iterable[Any] = value.values()
        else:
            inner = value if isinstance(value, list | tuple) else (value,)
        for entry in inner:
            if isinstance(entry, Tensor) and not isinstance(entry, nn.Parameter):
                yield entry


def _distinct(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    return iter({id(tensor): tensor for tensor in tensors}.values())
