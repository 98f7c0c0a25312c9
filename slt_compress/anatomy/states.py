"""What a module holds: modes, buffers, and the weights of its sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    """Eval mode for as long as the block lasts; every submodule's own mode afterwards."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Put back what forward passes change, when the block ends: the buffers, and all that goes
    with them (the length of a cache beside the cache).
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
    """What the module itself holds at the sites: parameters, or what parametrizations compute.

    Raises:
        TicketError: the module has no such weight, or one of another shape.
    """
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        path, _, param = name.rpartition(".")
        try:
            weight = getattr(module.get_submodule(path), param)
        except AttributeError:
            raise TicketError(f"the model has no weight {name}: was it made by other versions?") \
                from None  # fmt: skip
        if not isinstance(weight, Tensor) or tuple(weight.shape) != shape:
            raise TicketError(f"{name} of the model does not have the shape of its mask")
        weights[name] = weight
    return weights


def environment(module: nn.Module) -> dict[str, Any]:
    """What bit-identical outputs of a module depend on beside the module."""
    return {
        "device": next(module.parameters()).device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "timm": version("timm"),
    }
