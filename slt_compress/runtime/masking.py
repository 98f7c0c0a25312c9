"""Put masks, and the gains beside them, on the weights of a module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slt_compress.anatomy.copies import flatten_
from slt_compress.masks import Masks, masked_weight


def apply_masks_(
    module: nn.Module, masks: Masks, gains: Mapping[str, float | Tensor]
) -> tuple[str, ...]:
    """Set the weights of the sites to ±fl(gain * weight) where kept and to 0 elsewhere, in place.

    A weight under a parametrization becomes a plain parameter; returns the names of these.
    """
    flattened: list[str] = []
    with torch.no_grad():
        for name, mask in masks.items():
            path, _, param = name.rpartition(".")
            owner = module.get_submodule(path)
            if flatten_(owner, param):
                flattened.append(name)
            weight = getattr(owner, param)
            gain, flip = gains.get(name, 1.0), masks.flips.get(name)
            # not copied into: a weight may be expanded, or lie in the memory of another one
            weight.data = masked_weight(weight, mask, gain, flip)
    return tuple(flattened)
