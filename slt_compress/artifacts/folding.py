"""Folds: weights that lie in a dense file with their inputs in another order.

What gives these inputs has its outputs in the same order there, so that the file holds a model that
computes the same, and N:M masks whose groups are neighbours. A reader puts all of it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.masks import Masks
from slt_compress.sites.input_orders import as_order
from slt_compress.storage.manifests import Manifest, is_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """The order of the inputs of one weight.

    Attributes:
        order: the input at each place.
        dim: the dimension of the weight that has the inputs.
        givers: parameters and buffers whose first dimension gives them.
    """

    order: tuple[int, ...]
    dim: int
    givers: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"order": list(self.order), "dim": self.dim, "givers": list(self.givers)}

    def places(self, name: str) -> Iterator[tuple[str, int]]:
        """Every tensor that is in the order, with the dimension that is; `name` is the weight's."""
        yield name, self.dim
        yield from ((giver, 0) for giver in self.givers)


Folds = Mapping[str, Fold]


def fold_(module: nn.Module, folds: Folds, *, back: bool = False) -> None:
    """Put tensors of a module into the order of folds in place, or `back` into their own."""
    for name, fold in folds.items():
        order = torch.tensor(fold.order)
        order = order.argsort() if back else order
        for place, dim in fold.places(name):
            tensor = _tensor(module, place)
            tensor.data = tensor.data.index_select(dim, order.to(tensor.device))


def folded_masks(masks: Masks, folds: Folds) -> Masks:
    """The masks of the weights of a folded module."""
    turned = {name: (mask, masks.flips.get(name)) for name, mask in masks.items()}
    for name, fold in folds.items():
        order = torch.tensor(fold.order)
        for place, dim in fold.places(name):
            if place in turned:
                mask, flip = turned[place]
                kept = None if flip is None else flip.index_select(dim, order)
                turned[place] = mask.index_select(dim, order), kept
    flips = {name: flip for name, (_, flip) in turned.items() if flip is not None}
    return Masks({name: mask for name, (mask, _) in turned.items()}, flips)


def parse_folds(manifest: Manifest) -> dict[str, Fold]:
    """The folds of an artifact, by the name of the weight; none where the manifest has none.

    Raises:
        ArtifactError: one is damaged, or two of them order the same dimension.
    """
    records = manifest.object("folds") if "folds" in manifest.values else {}
    folds = {name: _parse(name, record, manifest) for name, record in records.items()}
    places = [place for name, fold in folds.items() for place in fold.places(name)]
    if len(set(places)) != len(places):
        raise manifest.damaged("two folds order the same dimension of a tensor")
    return folds


def unfold_(module: nn.Module, manifest: Manifest) -> None:
    """Put the tensors of a module that was read from a folded artifact into their own order.

    Raises:
        ArtifactError: the folds are damaged, or not of this module.
    """
    folds = parse_folds(manifest)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name, fold in folds.items():
        for place, dim in fold.places(name):
            shape = shapes.get(place, ())
            if dim >= len(shape) or shape[dim] != len(fold.order):
                raise manifest.damaged(f"the fold of {name[:80]} does not fit {place[:80]}")
    fold_(module, folds, back=True)


def _parse(name: str, record: object, manifest: Manifest) -> Fold:
    values = record if isinstance(record, dict) else {}
    order, dim, givers = as_order(values.get("order")), values.get("dim"), values.get("givers")
    if order is None or not is_count(dim, least=0) or not isinstance(givers, list):
        raise manifest.damaged(f"the fold of {name[:80]} is {str(record)[:80]}")
    return Fold(order=order, dim=dim, givers=tuple(str(giver) for giver in givers))


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor
