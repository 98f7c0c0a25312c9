"""Inputs in the dtype of the layer that reads them: a checkpoint in half precision wants halves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# What inputs can have: no float8, whose layers scale their inputs themselves.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def fitted(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with floating inputs in the dtype that the module reads; labels as they are.

    Pictures and sounds are prepared in float32. A model of mixed dtypes reads them with its first
    convolution, or its first linear layer where it has none.
    """
    wanted = _input_dtype(module)
    return {
        key: value.to(wanted)
        if key != "labels" and isinstance(value, Tensor) and value.is_floating_point()
        else value
        for key, value in batch.items()
    }


def _input_dtype(module: nn.Module) -> torch.dtype:
    for kind in (_ConvNd, nn.Linear, nn.Module):
        for child in module.modules():
            if isinstance(child, kind):
                for parameter in child.parameters():
                    if parameter.dtype in _DTYPES:
                        return parameter.dtype
    return torch.float32
