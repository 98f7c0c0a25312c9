"""The state of a module: modes, buffers, and the weights of its sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.remembering import remember_state
from slt_compress.errors import TicketError
from slt_compress.masks import Masks


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside this block; every submodule's own mode afterwards."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the buffers when the block ends, and what else forward passes change.

    A cache goes with its length: both are restored, or neither would fit the other.
    """
    before = remember_state(module)
    try:
        yield
    finally:
        before.put_back_state()


def set_buffers(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into the module's buffers of the same names; one of another shape is replaced."""
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name in values and values[name].shape == buffer.shape:
                buffer.copy_(values[name])
            elif name in values:
                path, _, leaf = name.rpartition(".")
                fitting = values[name].to(buffer.device, buffer.dtype, copy=True)
                module.get_submodule(path)._buffers[leaf] = fitting


def set_parameters_(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters other values; the module keeps the same objects.

    Raises:
        TicketError: the module has no such parameter, or one of another shape or dtype.
    """
    own = dict(module.named_parameters())
    for name, value in values.items():
        parameter = own.get(name)
        if parameter is None or parameter.shape != value.shape or parameter.dtype != value.dtype:
            seen = None if parameter is None else (tuple(parameter.shape), parameter.dtype)
            raise TicketError(
                f"{name} was tuned as {tuple(value.shape)} {value.dtype} and is {seen} in the model"
            )
    for name, value in values.items():
        # not copied into: a parameter may be expanded, or lie in the memory of another one
        own[name].data = value.to(own[name].device, copy=True)


def changed_buffers(module: nn.Module, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the buffers that differ from those of the same names in `before`; no sparse one."""
    return {
        name: buffer.clone()
        for name, buffer in module.named_buffers()
        if name in before
        and buffer.layout is torch.strided
        and not torch.equal(buffer, before[name])
    }


def shapes_of(masks: Masks) -> dict[str, tuple[int, ...]]:
    """Shape of every mask."""
    return {name: tuple(mask.shape) for name, mask in masks.items()}


def site_weights(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights of the sites, by name.

    Raises:
        TicketError: the module has no such weight, or one of another shape.
    """
    return {name: weight.detach() for name, weight in site_parameters(module, shapes).items()}


def site_parameters(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The module's own tensors at the sites: parameters, or what parametrizations compute.

    Raises:
        TicketError: the module has no such weight, or one of another shape.
    """
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        path, _, param = name.rpartition(".")
        try:
            weight = getattr(module.get_submodule(path), param)
        except AttributeError:
            raise TicketError(
                f"the model has no weight {name}; it may come from other library versions"
            ) from None
        if not isinstance(weight, Tensor) or tuple(weight.shape) != shape:
            seen = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise TicketError(f"{name} is {seen} in the model and its mask has the shape {shape}")
        weights[name] = weight
    return weights


def module_nbytes(module: nn.Module) -> int:
    """Bytes of all tensors in the module's state dict; tensors with several names count once."""
    return tensors_nbytes(module.state_dict(keep_vars=True).values())


def tensors_nbytes(values: Iterable[Any]) -> int:
    """Bytes of all tensors among `values`, each object once; on the meta device as well.

    A state dict may hold extra state that is no tensor; it counts for nothing.
    """
    tensors = {id(value): value for value in values if isinstance(value, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def environment(module: nn.Module) -> dict[str, Any]:
    """Everything beside the module on which bit-identical outputs depend."""
    return {
        "device": next(module.parameters()).device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "timm": version("timm"),
    }
