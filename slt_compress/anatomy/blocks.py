"""Hidden states: what comes out of the blocks of a network, caught in its forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

Hidden = dict[str, Tensor]


def block_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the blocks: outermost members of a ModuleList or Sequential that hold a matrix.

    Layers of a transformer, residual blocks of a stage. Empty where the network has none.
    """
    found: list[str] = []
    for name, child in module.named_modules():
        inside = any(f"{name}.".startswith(f"{block}.") for block in found)
        repeated = isinstance(child, nn.ModuleList | nn.Sequential)
        if inside or not repeated or isinstance(child, parametrize.ParametrizationList):
            continue
        for key, member in child.named_children():
            if any(parameter.dim() > 1 for parameter in member.parameters()):
                found.append(f"{name}.{key}" if name else key)
    return tuple(found)


@contextmanager
def caught(module: nn.Module, names: tuple[str, ...]) -> Iterator[Hidden]:
    """The outputs of the modules `names` in the forward passes of this block, the last ones.

    A module that gives several values counts by the first; one that gives no tensor by none.
    """
    states: Hidden = {}

    def hook(name: str) -> Any:
        def keep(owner: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, Tensor) and first.is_floating_point():
                states[name] = first

        return keep

    inner = module.module if isinstance(module, DistributedDataParallel) else module
    handles = [inner.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
