"""Failing: what went wrong as one line on stderr, and exit code 1."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from slt_compress.cli.plain_lines import say
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
    lines: tuple[str, ...] = ()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            yield
    except SltError as error:
        reason = str(error)
        lines = error.lines if isinstance(error, PythonOnlyError) else ()
    except OSError as error:
        if error.errno not in _MACHINE:
            raise
        reason = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    except (MemoryError, RuntimeError, ImportError) as error:
        from slt_compress.storage.memory import is_low_memory

        if not is_low_memory(error):
            raise
        reason = (
            "there is not enough memory: use a smaller --batch-size, set evaluation.limit, or free "
            "some; nothing was left half-written"
        )
    else:
        return
    say(f"error: {reason}", err=True)
    for line in lines:
        say(f"    {line}", err=True)
    sys.exit(1)
