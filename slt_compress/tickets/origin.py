"""The origin of a ticket."""

from __future__ import annotations

from torch import Tensor

from slt_compress.checkpoints.recorded import RecordedOrigin
from slt_compress.errors import TicketError
from slt_compress.tickets import ORIGIN, Ticket, read_origin_tensors


def origin_of_ticket(ticket: Ticket) -> RecordedOrigin:
    """What a ticket was searched on."""
    return RecordedOrigin(
        path=ticket.path, record=ticket.origin, stored=stored_of(ticket), error=TicketError
    )


def stored_of(ticket: Ticket) -> dict[str, Tensor]:
    """All tensors in a ticket that the seed of its random init does not give.

    Raises:
        TicketError: they are damaged.
    """
    has_origin = ORIGIN in ticket.manifest.object("files")
    return {**ticket.stored, **(read_origin_tensors(ticket) if has_origin else {})}
