"""What else to know of an ONNX file: weights that it holds twice, and padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from slt_compress.errors import SourceError

_PADDED = (
    "this file was optimised by onnxruntime for one machine: its convolutions are padded, so that "
    "zeros counted in the file are more than the model has"
)
_SMALL = 1024  # elements below which nobody minds a second copy


def onnx_notes(
    nodes: Sequence[Any], entries: Mapping[str, Any], read: Callable[[Any], Tensor]
) -> tuple[str, ...]:
    """The sentences for a file.

    Args:
        nodes: of all its graphs.
        entries: initializers by name.
        read: an initializer as a tensor.
    """
    padded = any(node.domain == "com.microsoft.nchwc" for node in nodes)
    twice = [
        f"{first} and {second} are one weight that is stored twice (tied weights that an exporter "
        f"parted): {nbytes:,} bytes more, and a step that changes one leaves the other"
        for first, second, nbytes in _copies(entries, read)
    ]
    return (*([_PADDED] if padded else []), *twice)


def _copies(
    entries: Mapping[str, Any], read: Callable[[Any], Tensor]
) -> Iterator[tuple[str, str, int]]:
    """Matrices that are equal, or one the other turned, and the bytes of the second."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, entry in entries.items():
        sizes = tuple(entry.dims)
        if len(sizes) != 2 or sizes[0] * sizes[1] < _SMALL:
            continue
        try:
            weight = read(entry)
        except SourceError:  # it is asked for by whoever needs it
            continue
        corners = weight[0, 0].item(), weight[-1, -1].item()
        key = tuple(sorted(sizes)), weight.dtype, int(weight.count_nonzero()), *map(repr, corners)
        alike.setdefault(key, []).append(name)
    for names in alike.values():
        for place, name in enumerate(names[1:], start=1):
            weight = read(entries[name])
            equal = (n for n in names[:place] if _same(read(entries[n]), weight))
            first = next(equal, None)
            if first is not None:
                yield first, name, weight.nbytes


def _same(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first, second) or torch.equal(first, second.T)
