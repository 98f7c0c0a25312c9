"""What was cut: positions of tensors, constants moved into biases, and numbers of heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.parameters import is_conv1d
from slt_compress.errors import ArtifactError

# Attributes in which modules keep their number of heads and the width of all heads together.
QUERY_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
WIDTHS = ("all_head_size", "attn_dim", "embed_dim", "split_size", "inner_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliced:
    """A tensor of which only some positions remain.

    Attributes:
        shape: its sizes before the cut.
        kept: the positions that remain, by dimension, in rising order.
    """

    shape: tuple[int, ...]
    kept: Mapping[int, tuple[int, ...]]

    @property
    def after(self) -> tuple[int, ...]:
        """Its sizes after the cut."""
        return tuple(len(self.kept.get(dim, range(size))) for dim, size in enumerate(self.shape))

    def of(self, tensor: Tensor) -> Tensor:
        """The remaining positions of a tensor of the shape before the cut."""
        for dim, positions in self.kept.items():
            tensor = tensor.index_select(dim, torch.tensor(positions))
        return tensor.contiguous()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Constant inputs of a layer that were moved into its bias.

    The bias is `fl(bias + sum over j of weight[:, columns[j]] * constants[j])`, with the columns of
    the masked weight along `dim`, summed over the kernel of a convolution. It is computed in
    float64 and rounded once.
    """

    weight: str
    dim: int
    columns: tuple[int, ...]
    constants: tuple[float, ...]

    def of(self, bias: Tensor, weight: Tensor) -> Tensor:
        """The new bias, from the bias and the masked weight before the cut."""
        chosen = weight.detach().double().index_select(self.dim, torch.tensor(self.columns))
        matrix = chosen.transpose(0, 1 - self.dim)  # [outputs, columns, …]
        matrix = matrix.flatten(2).sum(2) if matrix.dim() > 2 else matrix
        added = (matrix * torch.tensor(self.constants, dtype=torch.float64)).sum(1)
        return (bias.detach().double() + added).to(bias.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """Everything in which a shrunk model differs from the masked one.

    Attributes:
        tensors: what remains of a parameter or buffer, by name.
        folds: what was moved into a bias, by its name.
        attributes: numbers of heads before and after, by module and attribute.
    """

    tensors: Mapping[str, Sliced]
    folds: Mapping[str, Fold]
    attributes: Mapping[str, Mapping[str, tuple[int, int]]]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that the manifest holds."""
        tensors = {
            name: {
                "shape": list(entry.shape),
                "kept": {str(dim): list(kept) for dim, kept in entry.kept.items()},
            }
            for name, entry in self.tensors.items()
        }
        folds = {name: asdict(fold) for name, fold in self.folds.items()}
        for fold in folds.values():
            fold |= {key: list(fold[key]) for key in ("columns", "constants")}
        attributes = {
            name: {key: list(pair) for key, pair in entry.items()}
            for name, entry in self.attributes.items()
        }
        return {"tensors": tensors, "folds": folds, "attributes": attributes}


def parse_shrunk(values: object) -> Shrunk:
    """Read what `Shrunk.to_dict` wrote, trusting none of it.

    Raises:
        ArtifactError: it has another form, or positions are outside the sizes before the cut.
    """
    cut = _object(values, "shrunk")
    tensors = {
        name: _sliced(name, _object(entry, name))
        for name, entry in _object(cut.get("tensors"), "its tensors").items()
    }
    folds = {
        name: _fold(name, _object(entry, name))
        for name, entry in _object(cut.get("folds"), "its folds").items()
    }
    attributes = {
        name: {key: _counts(name, key, pair) for key, pair in _object(entry, name).items()}
        for name, entry in _object(cut.get("attributes"), "its attributes").items()
    }
    return Shrunk(tensors=tensors, folds=folds, attributes=attributes)


def resize_(module: nn.Module, shrunk: Shrunk) -> None:
    """Cut the tensors of a module down to the remaining positions, in place.

    Raises:
        ArtifactError: the module has no such tensor or attribute, or one of another size.
    """
    for name, sliced in shrunk.tensors.items():
        owner, leaf = _owner(module, name)
        tensor = getattr(owner, leaf, None)
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != sliced.shape:
            raise ArtifactError(f"the model has no {name} of {sliced.shape} to shrink")
        smaller = sliced.of(tensor.detach())
        if isinstance(tensor, nn.Parameter):
            setattr(owner, leaf, nn.Parameter(smaller, requires_grad=tensor.requires_grad))
        else:
            setattr(owner, leaf, smaller)
    for owner in {id(o): o for o, _ in (_owner(module, n) for n in shrunk.tensors)}.values():
        _note_sizes(owner)
    for name, entry in shrunk.attributes.items():
        owner = _owner(module, f"{name}.")[0]
        for key, (before, after) in entry.items():
            if vars(owner).get(key) != before:
                raise ArtifactError(f"the model has no {name}.{key} of {before} to shrink")
            setattr(owner, key, after)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return module.get_submodule(path), leaf
    except AttributeError:
        raise ArtifactError(f"the model has no {name} to shrink") from None


def _note_sizes(owner: nn.Module) -> None:
    """Update the attributes in which a layer keeps the sizes of its tensors."""
    known: Any = owner
    if isinstance(owner, nn.Linear):
        known.out_features, known.in_features = owner.weight.shape
    elif isinstance(owner, nn.modules.conv._ConvNd):
        known.out_channels = owner.weight.shape[0]
        # A grouped convolution is only cut if it is depthwise: one group per channel.
        known.groups = 1 if owner.groups == 1 else owner.weight.shape[0]
        known.in_channels = owner.weight.shape[1] * known.groups
    elif isinstance(owner, nn.modules.batchnorm._NormBase):
        sizes = [tensor for tensor in (owner.running_mean, owner.weight) if tensor is not None]
        known.num_features = len(sizes[0])
    elif is_conv1d(owner):
        known.nx, known.nf = known.weight.shape


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArtifactError(f"{what[:80]} is {str(value)[:40]}")
    return value


def _sliced(name: str, entry: Mapping[str, object]) -> Sliced:
    shape = entry.get("shape")
    kept = _object(entry.get("kept"), name)
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise ArtifactError(f"{name[:80]} had the shape {str(shape)[:40]}")
    places = {str(dim): size for dim, size in enumerate(shape)}
    for dim, positions in kept.items():
        if dim not in places or not _rising(positions, places[dim]):
            raise ArtifactError(f"the positions of {name[:80]} are invalid")
    return Sliced(
        shape=tuple(shape),
        kept={int(dim): tuple(positions) for dim, positions in sorted(kept.items())},
    )


def _fold(name: str, entry: dict[str, Any]) -> Fold:
    columns, constants = entry.get("columns"), entry.get("constants")
    good = _rising(columns, 2**48) and isinstance(constants, list) and isinstance(columns, list)
    if (
        not good
        or len(columns or ()) != len(constants or ())
        or not all(isinstance(c, float) and math.isfinite(c) for c in constants or ())
        or not isinstance(entry.get("weight"), str)
        or entry.get("dim") not in (0, 1)
    ):
        raise ArtifactError(f"the fold into {name[:80]} is invalid")
    return Fold(
        weight=entry["weight"],
        dim=entry["dim"],
        columns=tuple(columns or ()),
        constants=tuple(constants or ()),
    )


def _rising(positions: object, size: int) -> bool:
    """Whether positions are a list, not empty, that rises strictly and stays below `size`."""
    if not isinstance(positions, list) or not positions:
        return False
    if not all(type(position) is int and 0 <= position < size for position in positions):
        return False
    return all(a < b for a, b in pairwise(positions))


def _counts(name: str, key: str, pair: Sequence[Any]) -> tuple[int, int]:
    if (
        key not in (*QUERY_HEADS, *KEY_HEADS, *WIDTHS)
        or not isinstance(pair, list)
        or len(pair) != 2
        or not all(type(count) is int for count in pair)
        or not 1 <= pair[1] <= pair[0]
    ):
        raise ArtifactError(f"{name[:80]}.{key[:40]} is {str(pair)[:40]}")
    return pair[0], pair[1]
