"""The parameters of a module, once per name, with their owners and their other names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.utils import parametrize


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter under one of its names.

    Attributes:
        module: path of the module that owns it.
        param: its name there.
        owner: that module.
        lineage: the modules on the path from the root to the owner, with the name of each.
        parent: the module above the owner.
        tensor: its value; for a parametrized weight, what the parametrization computes.
        names: all its names, in the order of the module; one unless it is shared.
        source_of: the parametrized weight that is computed from it, None for a plain parameter.
    """

    module: str
    param: str
    owner: nn.Module
    lineage: tuple[tuple[str, nn.Module], ...]
    parent: nn.Module | None
    tensor: Tensor
    names: tuple[str, ...]
    source_of: str | None = None

    @property
    def name(self) -> str:
        """The key of the parameter in its module."""
        return joined(self.module, self.param)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D: a linear layer with a weight [inputs, outputs].

    It is recognised by its name, because importing its class takes seconds.
    """
    plain = parametrize.type_before_parametrizations(module)
    return plain.__name__ == "Conv1D" and hasattr(module, "nf")


def joined(module: str, param: str) -> str:
    """The name of a parameter in the module at path `module` ("" for the root)."""
    return f"{module}.{param}" if module else param


def walk_parameters(root: nn.Module) -> Iterator[Parameter]:
    """Yield every parameter once per name; a parametrized weight comes before its sources."""
    modules = dict(root.named_modules(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, tensor in root.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    paths: dict[int, list[str]] = {}
    for path, module in modules.items():
        paths.setdefault(id(module), []).append(path)
    for path, owner in modules.items():
        parent = modules[path.rpartition(".")[0]] if path else None
        lineage = tuple(_lineage(path, modules))
        own: list[tuple[str, Tensor, tuple[str, ...]]] = [
            (param, value, tuple(names[id(value)]))
            for param, value in owner.named_parameters(recurse=False, remove_duplicate=False)
        ]
        weight = None
        if isinstance(owner, parametrize.ParametrizationList):
            weight = path.replace(".parametrizations.", ".").removeprefix("parametrizations.")
        elif parametrize.is_parametrized(owner):
            # Computed anew at every access, so it is shared only where its owner is.
            own += [
                (param, _computed(owner, param), tuple(joined(p, param) for p in paths[id(owner)]))
                for param in owner.parametrizations
            ]
        for param, value, shared in own:
            yield Parameter(
                module=path, param=param, owner=owner, lineage=lineage, parent=parent,
                tensor=value, names=shared, source_of=weight,
            )  # fmt: skip


def _lineage(path: str, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    place = ""
    yield "", modules[""]
    for part in path.split(".") if path else ():
        place = joined(place, part)
        yield part, modules[place]


def _computed(owner: nn.Module, param: str) -> Tensor:
    """A parametrized weight, read in eval mode, in which spectral norm leaves its buffers alone."""
    chain = owner.get_submodule(f"parametrizations.{param}")
    modes = {child: child.training for child in chain.modules()}
    chain.eval()
    try:
        value: Tensor = getattr(owner, param)
    finally:
        for child, mode in modes.items():
            child.training = mode
    return value
