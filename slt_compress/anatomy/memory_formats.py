"""Convolutions that must not read images in channels-last layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# oneDNN writes past its workspace in the backward pass of a strided 1x1 convolution over
# channels-last input with fewer channels than a vector register holds (8 with AVX2, 16 with
# AVX-512); the process dies at some later allocation. Seen with torch 2.14 (oneDNN 3.12); see
# github.com/uxlfoundation/oneDNN/issues/6035 and docs/coverage.md.
_CHANNELS = 16


@contextmanager
def contiguous_convolutions(module: nn.Module) -> Iterator[None]:
    """Inside this block, the affected convolutions read their inputs in channels-first layout."""
    with ExitStack() as stack:
        for child in module.modules():
            if isinstance(child, nn.Conv2d | nn.Conv3d) and _overflows(child):
                stack.callback(child.register_forward_pre_hook(_contiguous).remove)
        yield


def _overflows(conv: nn.Conv2d | nn.Conv3d) -> bool:
    strided = any(step > 1 for step in conv.stride)
    small = conv.in_channels // conv.groups < _CHANNELS
    return strided and small and all(size == 1 for size in conv.kernel_size)


def _contiguous(conv: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # A clone: `contiguous` keeps any strides where a dimension has one element.
    return tuple(
        value.clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value
        for value in inputs
    )
