"""Failing: what went wrong as one line on stderr, and exit code 1."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from slt_compress.cli.plain_lines import say
from slt_compress.cli.stopping import is_stopping
from slt_compress.errors import PythonOnlyError, SltError

# What the machine refuses, whatever the command: no space, no quota, no right, no descriptors.
_MACHINE = frozenset((
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE,
    errno.ENFILE, errno.EFBIG, errno.EIO,
))  # fmt: skip


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """A warning as one line, without the place in the code that gave it."""
    say(f"warning: {' '.join(str(message).split())}", err=True)


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Turn an error that a user can do something about into a line and exit code 1."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            yield
    except (SltError, OSError, MemoryError, RuntimeError, ImportError) as error:
        # what a library made of a signal in the middle of its work is no news
        reason = None if is_stopping() else _reason(error)
        if reason is None:
            raise
        lines = error.lines if isinstance(error, PythonOnlyError) else ()
    else:
        return
    say(f"error: {reason}", err=True)
    for line in lines:
        say(f"    {line}", err=True)
    sys.exit(1)


def _reason(error: Exception) -> str | None:
    """What to tell of an error; None for one that is nobody's but ours."""
    if isinstance(error, SltError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _MACHINE:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    from slt_compress.storage.memory import is_low_memory

    if not is_low_memory(error):
        return None
    return (
        "there is not enough memory: use a smaller --batch-size, set evaluation.limit, or free "
        "some; nothing was left half-written"
    )
