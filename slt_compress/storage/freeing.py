"""Memory: give what is free back to the system, so that a peak is what is in use."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from torch import Tensor

# Elements of tensors that come and go before memory is given back.
_BETWEEN = 1 << 22


def release() -> None:
    """Give back the memory that the allocator of the C library keeps free, where it can do that.

    Tensors of many sizes that come and go leave holes in the heap, several times what is in use.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


def releasing(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The tensors, with `release` after every few millions of elements and at the end."""
    passed = 0
    for name, tensor in tensors:
        yield name, tensor
        passed += tensor.numel()
        if passed >= _BETWEEN:
            release()
            passed = 0
    release()


def released(make: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
    """The same function of a name, with `release` after every few millions of elements made."""
    passed = 0

    def making(name: str) -> Tensor:
        nonlocal passed
        if passed >= _BETWEEN:
            release()
            passed = 0
        made = make(name)
        passed += made.numel()
        return made

    return making


@cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None with another C library."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
