"""The tensors of a module by name, with ties: collected from a module, and put into one."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slt_compress.anatomy.copies import flatten_
from slt_compress.errors import ArtifactError


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Parameters and saved buffers of a module, each once; `ties` maps further names to keys.

    Where `tensors` are computed whenever they are looked up, `shells` has their shapes and dtypes.
    """

    tensors: Mapping[str, Tensor]
    ties: Mapping[str, str]
    shells: Mapping[str, Tensor] | None = None

    def shell(self, name: str) -> Tensor:
        """A tensor of which only shape and dtype are used."""
        return (self.shells or self.tensors)[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, each whole and once."""
        return sum(shell.nbytes for shell in (self.shells or self.tensors).values())


def masked_state(module: nn.Module, masks: Mapping[str, Tensor]) -> State:
    """Collect what a masked module saves, as `state_of`.

    Raises:
        ArtifactError: as `state_of`, or a mask was not applied.
    """
    state = state_of(module, {name: tuple(mask.shape) for name, mask in masks.items()})
    for name, mask in masks.items():
        if bool((state.tensors[name].cpu().masked_fill(mask, 0) != 0).any()):
            raise ArtifactError(f"{name} has weights that its mask drops; apply the masks first")
    return state


def state_of(module: nn.Module, sites: Mapping[str, tuple[int, ...]]) -> State:
    """Collect what a module saves; a tied tensor gets the name of its site, or else its first.

    Raises:
        ArtifactError: a site is not a tensor of the module, or the module saves something else.
    """
    names: dict[int, list[str]] = {}
    saved: dict[str, Tensor] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ArtifactError(f"{name} is extra state of its module and not a tensor")
        names.setdefault(id(tensor), []).append(name)
        saved[name] = tensor.detach()
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for group in names.values():
        key = next((name for name in group if name in sites), group[0])
        tensors[key] = saved[key]
        ties.update({name: key for name in group if name != key})
    for name, shape in sites.items():
        if name not in tensors or tensors[name].shape != shape:
            raise ArtifactError(f"the site {name} {shape} is not a weight of the model")
    return State(tensors=tensors, ties=ties)


def own_shapes(module: nn.Module, names: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """The shape of everything that `module` saves.

    A weight in `names` that the module computes by a parametrization (weight norm) becomes a plain
    parameter first, as an artifact holds the weight itself.
    """
    for name in names:
        owner_name, _, leaf = name.rpartition(".")
        try:
            owner = module.get_submodule(owner_name)
        except AttributeError:
            continue
        flatten_(owner, leaf)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def hollow_(module: nn.Module, names: Container[str]) -> None:
    """Take the memory of parameters that `fill_` replaces, so that it is not needed twice."""
    for path, owner in module.named_modules():
        for leaf, parameter in list(owner._parameters.items()):
            if parameter is not None and f"{path}.{leaf}".removeprefix(".") in names:
                shell = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
                owner._parameters[leaf] = shell


def fill_(module: nn.Module, state: State) -> None:
    """Put tensors into a module in place, with their own dtypes, and tie what was tied.

    Raises:
        ArtifactError: names or shapes are not those of the module.
    """
    shapes = own_shapes(module, state.tensors)
    given = {**state.tensors, **{alias: state.tensors[key] for alias, key in state.ties.items()}}
    odd = sorted(shapes.keys() ^ given.keys())
    if odd:
        raise ArtifactError(
            f"the stored tensors and the model disagree on {', '.join(odd[:3])}"
            f"{' and more' if len(odd) > 3 else ''}; install the library versions of the manifest"
        )
    for name, tensor in given.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ArtifactError(
                f"{name} is stored as {tuple(tensor.shape)}; the model has {shapes[name]}"
            )
    with torch.no_grad():
        module.load_state_dict(given, strict=True, assign=True)
    for alias, key in state.ties.items():
        owner, leaf = _place(module, alias)
        source, source_leaf = _place(module, key)
        setattr(owner, leaf, getattr(source, source_leaf))


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return module.get_submodule(owner), leaf
