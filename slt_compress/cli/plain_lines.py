"""Single lines on stdout and stderr, without the libraries that lay out tables."""

from __future__ import annotations

import sys

from slt_compress.storage.outside import visible


class ReaderGoneError(Exception):
    """Whoever reads the output has seen enough, as `head` has in `report | head`."""


def say(text: object, *, err: bool = False) -> None:
    """Print one line on stdout, or on stderr; characters that act are shown as escapes.

    Raises:
        ReaderGoneError: nobody reads stdout any more.
    """
    if err:
        print(visible(text), file=sys.stderr, flush=True)
    else:
        write(visible(text) + "\n")


def write(text: str) -> None:
    """Write text on stdout as it is.

    Raises:
        ReaderGoneError: nobody reads it any more.
    """
    try:
        sys.stdout.write(text)
    except BrokenPipeError:  # which typer would end the process for, with code 1
        raise ReaderGoneError from None
