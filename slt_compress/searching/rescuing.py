"""Rescuing: a finished search whose ticket cannot be written where it was meant to go."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from slt_compress.errors import TicketError
from slt_compress.tickets import Ticket, free_path


def rescue(write: Callable[[Path], Ticket], stem: str, reason: TicketError) -> TicketError:
    """Write a ticket to the first fallback folder that takes it; the error that says where it is.

    Fallback folders are `slt-compress-rescued` in the user's home and in the folder for temporary
    files.
    """
    for parent in _fallbacks():
        try:
            ticket = write(free_path(parent, stem))
        except (TicketError, OSError):
            continue
        return TicketError(
            f"{reason}; the finished search was saved to {ticket.path} instead: move it from there"
        )
    return TicketError(f"{reason}; no fallback folder could be written either")


def _fallbacks() -> Iterator[Path]:
    for parent in (Path("~").expanduser(), Path(tempfile.gettempdir())):
        yield parent / "slt-compress-rescued"
