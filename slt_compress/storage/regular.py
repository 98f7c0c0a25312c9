"""Opening of regular files only: a pipe or a device would be waited for without end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe, a socket or a device.
    """
    # without O_NONBLOCK the opening of a pipe waits for a writer
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def expect_regular(path: Path) -> None:
    """Refuse what `open_regular` refuses, for a library that opens the file itself.

    Raises:
        OSError: as `open_regular`.
    """
    open_regular(path).close()


def regular(path: str) -> str:
    """The path of a regular file as it is, for a library that opens the file itself.

    Raises:
        OSError: as `open_regular`.
    """
    expect_regular(Path(path))
    return path


def read_regular_text(path: Path, limit: int, errors: str = "strict") -> str:
    """The first `limit` bytes of a regular file, as UTF-8 text.

    Raises:
        OSError: as `open_regular`.
        ValueError: it is not UTF-8.
    """
    with open_regular(path) as stream:
        # no more than there is: Python makes room for as much as it is asked to read
        return stream.read(min(os.fstat(stream.fileno()).st_size, limit)).decode("utf-8", errors)
