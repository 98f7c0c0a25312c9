"""Hidden states: the outputs of the blocks of a network, captured during a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

BlockOutputs = dict[str, Tensor]
"""The output of each block, by the name of the block."""


def block_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the blocks: the outermost members of a ModuleList or Sequential that hold a matrix.

    These are the layers of a transformer or the residual blocks of a stage. Empty where the
    network has none.
    """
    blocks: list[str] = []
    for name, child in module.named_modules():
        inside = any(f"{name}.".startswith(f"{block}.") for block in blocks)
        repeated = isinstance(child, nn.ModuleList | nn.Sequential)
        if inside or not repeated or isinstance(child, parametrize.ParametrizationList):
            continue
        for key, member in child.named_children():
            if any(parameter.dim() > 1 for parameter in member.parameters()):
                blocks.append(f"{name}.{key}" if name else key)
    return tuple(blocks)


@contextmanager
def capture_outputs(module: nn.Module, names: tuple[str, ...]) -> Iterator[BlockOutputs]:
    """Capture the outputs of the submodules `names`; each forward pass overwrites the last.

    Of a submodule that returns several values the first is kept; one that returns no tensor is
    left out.
    """
    states: BlockOutputs = {}

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
