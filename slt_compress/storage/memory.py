"""Low memory and too many open files, in the spellings of the libraries below."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

import torch

_SPELLINGS = re.compile(
    r"can't allocate memory|[Cc]annot allocate memory|not enough memory|out of memory"
    r"|[Uu]nable to allocate|malloc failed|bad_?alloc|OutOfMemory|os error 12|failed to map segment"
)
# As C libraries spell it, and safetensors' own.
_TOO_MANY = re.compile(r"[Tt]oo many open files|os error 2[34]\b")


def is_low_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that there was not enough memory."""
    return any(_says_so(cause) for cause in _causes(error))


def is_out_of_files(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that too many files are open."""
    return any(_TOO_MANY.search(str(cause)) is not None for cause in _causes(error))


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return _SPELLINGS.search(str(error)) is not None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
