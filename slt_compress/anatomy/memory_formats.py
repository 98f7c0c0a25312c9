"""Convolutions that may not read pictures with their channels last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# oneDNN writes past its workspace in the backward pass of a strided 1x1 convolution that reads
# fewer channels than fit a vector register (8 with AVX2, 16 with AVX-512), channels last: the
# process dies at some later allocation. github.com/uxlfoundation/oneDNN/issues/6035, and in
# docs/coverage.md the few lines that show it. Seen with torch 2.14 (oneDNN 3.12).
_CHANNELS = 16


@contextmanager
def plain_layouts(module: nn.Module) -> Iterator[None]:
    """For as long as the block lasts, such convolutions read their inputs with channels first."""
    with ExitStack() as stack:
        for child in module.modules():
            if isinstance(child, nn.Conv2d | nn.Conv3d) and _overflows(child):
                stack.callback(child.register_forward_pre_hook(_plain).remove)
        yield


def _overflows(conv: nn.Conv2d | nn.Conv3d) -> bool:
    strided = any(step > 1 for step in conv.stride)
    small = conv.in_channels // conv.groups < _CHANNELS
    return strided and small and all(size == 1 for size in conv.kernel_size)


def _plain(conv: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # a clone: where a dimension has one element, `contiguous` gives back any strides
    return tuple(
        value.clone(memory_format=torch.contiguous_format) if isinstance(value, Tensor) else value
        for value in inputs
    )
