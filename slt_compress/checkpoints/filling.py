"""Fill a module with seeded initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from slt_compress.anatomy.parameters import is_conv1d, walk_parameters
from slt_compress.anatomy.roles import is_table
from slt_compress.checkpoints.initial import initial_tensor, parse_scheme
from slt_compress.errors import SourceError


@torch.no_grad()
def initialise_(module: nn.Module, scheme: str, seed: int) -> tuple[str, ...]:
    """Fill `module` and return the state-dict names that keep the library's value.

    Filled are biases (0), scales of norms (1) and their running statistics (mean 0, variance 1),
    and every trainable parameter of two or more dimensions (`initial_tensor`, cast to its dtype).
    A table (embeddings, positions, tokens) has a fan-in of 1, because one entry is looked up or
    added, and no sum is taken. A position much smaller than what it is added to would carry little
    information, and no training makes up for it here. If an embedding is also the output head, all
    tables have the fan-in of the head.

    Left alone are other vectors, other persistent buffers, constants (`requires_grad` False) and
    weights under a parametrization. A shared parameter is filled once, under its first name. With
    the scheme `default` nothing is filled and every name is returned.

    Raises:
        SourceError: an unknown scheme.
    """
    parse_scheme(scheme)
    names = tuple(module.state_dict())
    if scheme == "default":
        return names
    tables = _tables(module)
    done: dict[int, bool] = {}  # id of a tensor -> whether the rule covers it
    left = []
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    for name in names:
        tensor = tensors.get(name)
        if tensor is None:  # extra state is not a tensor, so a ticket cannot store it
            continue
        if id(tensor) not in done:
            rule = _Rule(scheme=scheme, seed=seed, is_table=id(tensor) in tables)
            done[id(tensor)] = _fill(module, name, tensor, tensor, rule)
            if not done[id(tensor)]:
                left.append(name)
    return tuple(left)


def seeded_filler(module: nn.Module, scheme: str, seed: int) -> Callable[[str], Tensor]:
    """A function that makes one tensor as `initialise_` fills it; `module` may be on meta.

    It knows only the names that `initialise_` fills, not those that keep the library's value.
    """
    tables = _tables(module)
    shells = module.state_dict(keep_vars=True)
    first: dict[int, str] = {}  # a shared parameter is filled under its first name
    for name, shell in shells.items():
        first.setdefault(id(shell), name)

    @torch.no_grad()
    def make(name: str) -> Tensor:
        name = first[id(shells[name])]
        rule = _Rule(scheme=scheme, seed=seed, is_table=id(shells[name]) in tables)
        # Ones, because the scale of a norm that starts at 0 keeps the library's value.
        made = torch.ones(shells[name].shape, dtype=shells[name].dtype)
        if not _fill(module, name, shells[name], made, rule):
            raise SourceError(f"the tensor {name} does not follow from a seed")
        return made

    return make


def unfilled(module: nn.Module, scheme: str) -> tuple[str, ...]:
    """The names that `initialise_` leaves alone; matrices of the module may be without values."""
    rule = _Rule(scheme=scheme, seed=0, is_table=False)
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    if scheme == "default":
        return tuple(module.state_dict())
    return tuple(
        name
        for name in module.state_dict()
        if name in tensors and _filling(module, name, tensors[name], tensors[name], rule) is None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """The values with which `_fill` fills."""

    scheme: str
    seed: int
    is_table: bool


def _tables(module: nn.Module) -> set[int]:
    """The ids of the parameters that are tables; none if one of them is also a matrix."""
    seen: dict[int, set[bool]] = {}
    for entry in walk_parameters(module):
        seen.setdefault(id(entry.tensor), set()).add(is_table(entry))
    tables = {key for key, kinds in seen.items() if True in kinds}
    return set() if any(seen[key] == {True, False} for key in tables) else tables


def _fill(module: nn.Module, name: str, own: Tensor, tensor: Tensor, rule: _Rule) -> bool:
    """Fill `tensor`, the module's `own` or one like it; returns whether the rule covers it."""
    filling = _filling(module, name, own, tensor, rule)
    if filling is not None:
        filling()
    return filling is not None


def _filling(
    module: nn.Module, name: str, own: Tensor, tensor: Tensor, rule: _Rule
) -> Callable[[], object] | None:
    """What fills `tensor`, the module's `own` or one like it; None if the rule does not cover it.

    The values of a matrix are not looked at.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    is_norm = "norm" in type(owner).__name__.lower()
    if not isinstance(own, nn.Parameter):
        value = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}.get(leaf)
        return partial(tensor.fill_, value) if is_norm and value is not None else None
    if not (own.requires_grad and tensor.is_floating_point()) or _is_derived(owner, name, leaf):
        return None
    if leaf.endswith("bias") or leaf.startswith("bias_"):
        return tensor.zero_
    if tensor.dim() >= 2:
        return partial(_draw_, owner, name, tensor, rule)
    if is_norm and leaf == "weight" and not _counts_from_one(owner, tensor):
        return partial(tensor.fill_, 1)
    return None


def _draw_(owner: nn.Module, name: str, tensor: Tensor, rule: _Rule) -> None:
    """Fill a matrix with its random numbers."""
    shape = tuple(tensor.shape)
    fan = 1 if rule.is_table else fan_in(owner, tensor)
    tensor.copy_(initial_tensor(name, shape, scheme=rule.scheme, seed=rule.seed, fan_in=fan))


def _is_derived(owner: nn.Module, name: str, leaf: str) -> bool:
    """Whether the weight is computed from this parameter (weight norm, old and new)."""
    split = leaf[:-2] if leaf.endswith(("_g", "_v")) else ""
    return ".parametrizations." in f".{name}" or (
        bool(split) and hasattr(owner, f"{split}_g") and hasattr(owner, f"{split}_v")
    )


def _counts_from_one(owner: nn.Module, scale: Tensor) -> bool:
    """Whether a norm multiplies by 1 + weight, so that its scale starts at 0 (Gemma).

    Batch norms also start at 0, to silence a residual branch at first; they do not count.
    """
    return "BatchNorm" not in type(owner).__name__ and not bool(scale.any())


def fan_in(owner: nn.Module, weight: Tensor) -> int:
    """Number of inputs per output of a weight of two or more dimensions in `owner`.

    This is the last dimension, unless the layer says otherwise. Convolutions count the kernel, and
    transposed ones store the input channels first. Conv1D and experts that are marked
    `is_transposed` store [..., in, out].
    """
    shape = weight.shape
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return shape[0] // owner.groups * math.prod(shape[2:])
    if isinstance(owner, nn.modules.conv._ConvNd):
        return math.prod(shape[1:])
    if getattr(owner, "is_transposed", False) is True and len(shape) == 3:
        return int(shape[1])
    if is_conv1d(owner):
        return int(shape[0])
    return int(shape[-1])
