"""Facts about one run of a search, which differ between equal runs and prove nothing."""

from __future__ import annotations

from pathlib import Path

from slt_compress.errors import SltError, TicketError
from slt_compress.storage.files import read_json
from slt_compress.storage.manifests import is_finite

RUN = "run.json"


def seconds_of(ticket: Path) -> float | None:
    """Seconds that the search of a ticket took; None where that is not recorded."""
    try:
        seconds = read_json(ticket / RUN, TicketError).get("seconds")
    except (SltError, OSError):
        return None
    return float(seconds) if is_finite(seconds) and seconds >= 0 else None
