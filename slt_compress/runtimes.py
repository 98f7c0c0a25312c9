"""Runtimes: what the layers of an opened model compute with."""

from __future__ import annotations

from torch import nn

from slt_compress.errors import SltError
from slt_compress.runtime import Opened


def as_runtime(opened: Opened, runtime: str) -> nn.Module:
    """The model on a runtime; `dense` is torch's own kernels on weights with zeros.

    Raises:
        SltError: an unknown runtime.
    """
    if runtime != "dense":
        raise SltError(f"unknown runtime {runtime!r}; known: dense")
    return opened.module
