"""Failing: what went wrong, as one line on stderr or as JSON, and the exit code for it."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from slt_compress.cli.json_output import print_json_line
from slt_compress.cli.plain_lines import ReaderGoneError, say
from slt_compress.cli.stopping import is_stopping
from slt_compress.errors import PythonOnlyError, SltError

# What the machine refuses, whatever the command: no space, no quota, no right, no descriptors.
_MACHINE = frozenset((
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE,
    errno.ENFILE, errno.EFBIG, errno.EIO,
))  # fmt: skip
# Of the click that typer brings: newer versions have their own copy of it.
_UsageBase: type[Any] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


@contextmanager
def told_in_one_line(*, as_json: bool = False) -> Iterator[None]:
    """Turn an error that a user can do something about into a line and exit code 1.

    A wrong use of the command line has exit code 2. With `as_json` the line is a JSON object. A
    reader of stdout that has gone, as in `report | head`, is no error.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn_json if as_json else _warn
            yield
            sys.stdout.flush()
    except (ReaderGoneError, BrokenPipeError):
        # the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except _UsageBase as error:
        _tell_usage(error, as_json=as_json)
    except typer.Abort:
        sys.exit(1)
    except (SltError, OSError, MemoryError, RuntimeError, ImportError) as error:
        # what a library made of a signal in the middle of its work is no news
        reason = None if is_stopping() else _reason(error)
        if reason is None:
            raise
        lines = error.lines if isinstance(error, PythonOnlyError) else ()
        _tell(type(error).__name__, reason, lines, as_json=as_json)


def _tell(kind: str, reason: str, lines: tuple[str, ...], *, as_json: bool) -> None:
    """Say an error, and end with code 1."""
    if as_json:
        _print_error(kind, reason, 1, lines)
    else:
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


def _tell_usage(error: Any, *, as_json: bool) -> None:
    """Say what is wrong about the words of a command, and end with its code."""
    if as_json:
        _print_error("UsageError", error.format_message(), error.exit_code, ())
    else:
        error.show()
    sys.exit(error.exit_code)


def _print_error(kind: str, message: str, code: int, lines: tuple[str, ...]) -> None:
    error = {"kind": kind, "message": message, "exit_code": code, "python": list(lines)}
    print_json_line({"event": "error", "error": error}, "error")


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    """A warning as one line, without the place in the code that gave it."""
    say(f"warning: {' '.join(str(message).split())}", err=True)


def _warn_json(message: Warning | str, *where: object, **more: object) -> None:
    """A warning as a line of JSON."""
    text = " ".join(str(message).split())
    print_json_line({"event": "log", "level": "warning", "text": text}, "event")
