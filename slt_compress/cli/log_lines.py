"""Log lines of the package on stderr, as plain text."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from slt_compress.storage.outside import visible

Emit = Callable[[logging.LogRecord, str], None]


@contextmanager
def log_lines(*, quiet: bool, emit: Emit | None = None) -> Iterator[None]:
    """Show what the package logs on stderr inside this block; warnings alone if `quiet`.

    `emit(record, text)` shows a record in another way.

    Of the processes of a distributed search only the first one speaks.
    """
    logger = logging.getLogger("slt_compress")
    before = logger.level, logger.propagate
    handler = logging.StreamHandler(sys.stderr) if emit is None else _Emitting(emit)
    handler.setFormatter(_Printable("%(message)s"))
    first = os.environ.get("RANK", "0") == "0"
    logger.setLevel((logging.WARNING if quiet else logging.INFO) if first else logging.CRITICAL)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class _Emitting(logging.Handler):
    """Hands each record on, with its text."""

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record on; a terminal that is gone ends no search."""
        try:
            self._emit(record, self.format(record))
        except OSError:
            self.handleError(record)


class _Printable(logging.Formatter):
    """Messages as `visible` shows them: names from files may hold control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The message with characters that act as escapes."""
        return visible(super().format(record))
