"""Readers: the submodules that read the outputs of another one, where the graph is obvious."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

# A submodule and the reader of its outputs, both named from the module that holds them.
_READERS = (
    ("fc1", "fc2"), ("fc2", "fc3"), ("lin1", "lin2"), ("c_fc", "c_proj"), ("up_proj", "down_proj"),
    ("gate_proj", "down_proj"), ("wi", "wo"), ("wi_0", "wo"), ("wi_1", "wo"), ("w1", "w2"),
    ("w3", "w2"), ("conv1", "conv2"), ("conv2", "conv3"), ("intermediate.dense", "output.dense"),
)  # fmt: skip


def readers_of(module: nn.Module, name: str) -> Iterator[str]:
    """Names of the submodules that read the outputs of the submodule `name`.

    They are found by the usual names of MLPs and residual blocks, and in an `nn.Sequential`, whose
    next member with a matrix reads them.
    """
    for first, second in _READERS:
        holder = name.removesuffix(first).removesuffix(".")
        if name in (first, f"{holder}.{first}"):
            reader = f"{holder}.{second}".removeprefix(".")
            if _has(module, reader):
                yield reader
    holder, _, leaf = name.rpartition(".")
    chain = module.get_submodule(holder)
    if isinstance(chain, nn.Sequential):
        names = [child for child, _ in chain.named_children()]
        for child in names[names.index(leaf) + 1 :]:
            if any(parameter.dim() > 1 for parameter in chain.get_submodule(child).parameters()):
                yield f"{holder}.{child}".removeprefix(".")
                return


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
