"""Locks that die with their process, on folders and on files that are not finished."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PART = ".part-"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of an existing folder or file for the block.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextmanager
def unfinished_folder(path: Path) -> Iterator[Path]:
    """A new, locked folder beside `path`, under a hidden name; what is left of it goes at the end.

    What dead processes left of theirs for the same `path` goes first.
    """
    remove_unfinished(path)
    while True:
        part, handle = part_name(path), None
        try:
            part.mkdir()  # inside, as an interrupt can come right after it
            handle = os.open(part, os.O_RDONLY)
            # a process that cleans up may have taken it for one that was left
            fcntl.flock(handle, fcntl.LOCK_EX)
            if part.is_dir() and os.path.samestat(os.fstat(handle), part.stat()):
                yield part
                return
        finally:
            shutil.rmtree(part, ignore_errors=True)  # gone where it was renamed
            if handle is not None:
                os.close(handle)


def remove_unfinished(path: Path) -> None:
    """Remove the unfinished folders and files for `path` whose processes are gone."""
    with suppress(OSError):
        for part in path.parent.iterdir():
            if part.name.startswith(f".{path.name}{_PART}"):
                _remove_if_dead(part)


def part_name(path: Path) -> Path:
    """A new hidden name beside `path`, for what is not finished."""
    return path.with_name(f".{path.name}{_PART}{secrets.token_hex(4)}")


def _remove_if_dead(part: Path) -> None:
    with suppress(OSError), locked(part):
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
