"""Bounds on what a config may ask for: a model as large as its files, and not larger."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from slt_compress.errors import SltError, SourceError
from slt_compress.storage.memory import is_low_memory

# A library registers a parameter again as it loads it, resizes some (positions, the first
# convolution) and makes up a few: so much more than its files may a model have, and so many
# weights and tensors in any case.
_GROWTH = 8
_ELEMENTS, _TENSORS = 4_000_000, 4_000
# of a model of which no more is known than that somebody searched it
MOST_TENSORS = 2_000
_ANY_SIZE = 10**15


class _TooLargeError(Exception):
    """Raised in the middle of a library's constructor; never seen outside of this module."""


@contextmanager
def bounded(elements: int, tensors: int, where: object, error: type[SltError]) -> Iterator[None]:
    """Let nothing be built in the block that is much larger than what there are weights for.

    The bound is looked at whenever a module of this thread registers a parameter or a buffer, so
    that a constructor ends there: before the tensor is filled and before the next one is made.

    Args:
        elements: how many weights there are.
        tensors: how many tensors.
        where: whose weights they are, for the message.
        error: what to raise.

    Raises:
        error: more was asked for.
    """
    most, most_tensors = _GROWTH * elements + _ELEMENTS, _GROWTH * tensors + _TENSORS
    seen = [0, 0]
    thread = threading.get_ident()

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        if threading.get_ident() != thread or not isinstance(tensor, Tensor):
            return
        seen[0] += tensor.numel()
        seen[1] += 1
        if seen[0] > most or seen[1] > most_tensors:
            raise _TooLargeError

    with ExitStack() as stack:
        for register in (
            hooks.register_module_parameter_registration_hook,
            hooks.register_module_buffer_registration_hook,
        ):
            stack.callback(register(count).remove)
        try:
            yield
        # whatever a library made of it: what it was about is known here
        except Exception as cause:
            if seen[0] > most or seen[1] > most_tensors or _is_overflow(cause):
                asked = "more tensors" if seen[1] > most_tensors else "a larger model"
                known = elements < _ANY_SIZE
                raise error(
                    f"the config of {where} asks for {asked} than "
                    + (
                        f"its {elements:,} weights in {tensors:,} tensors, so the two do not fit"
                        if known
                        else "any model has: it is damaged"
                    )
                ) from cause
            if is_low_memory(cause) and not isinstance(cause, SltError):
                raise error(f"there is not enough memory to build the model of {where}") from cause
            raise


@contextmanager
def bounded_count(where: object) -> Iterator[None]:
    """Let no more tensors be built in the block than any model has, of whatever size.

    Raises:
        SourceError: more were asked for, or sizes that no tensor can have.
    """
    with bounded(_ANY_SIZE, MOST_TENSORS, where, SourceError):
        yield


@contextmanager
def bounded_by(tensors: Mapping[str, Tensor], where: object) -> Iterator[None]:
    """As `bounded`, by the tensors of a checkpoint's files.

    Raises:
        SourceError: more was asked for.
    """
    elements = sum(tensor.numel() for tensor in tensors.values())
    with bounded(elements, len(tensors), where, SourceError):
        yield


@contextmanager
def bounded_by_shapes(
    shapes: Mapping[str, tuple[int, ...]], where: object, error: type[SltError]
) -> Iterator[None]:
    """As `bounded`, by the shapes of all tensors.

    Raises:
        error: more was asked for.
    """
    with bounded(sum(map(prod, shapes.values())), len(shapes), where, error):
        yield


def _is_overflow(error: BaseException) -> bool:
    """Whether torch refused a size that no tensor can have."""
    texts = f"{error} {error.__cause__ or ''}"
    return any(word in texts for word in ("overflow", "Overflow")) and not isinstance(
        error, torch.OutOfMemoryError
    )
