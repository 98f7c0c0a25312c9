"""The ticket folder: masks, where the weights come from, and what was measured."""

from __future__ import annotations

from slt_compress.tickets.content import TicketContent
from slt_compress.tickets.places import ORIGIN, check_target, free_path, newest
from slt_compress.tickets.reading import (
    Ticket,
    read_history,
    read_origin_tensors,
    read_probe,
    read_scores,
    read_ticket,
    ticket_hash,
)
from slt_compress.tickets.records import (
    Counts,
    Extra,
    Metrics,
    SiteFacts,
    SiteRecord,
    Units,
    parse_metrics,
)
from slt_compress.tickets.writing import write_ticket

__all__ = [
    "ORIGIN",
    "Counts",
    "Extra",
    "Metrics",
    "SiteFacts",
    "SiteRecord",
    "Ticket",
    "TicketContent",
    "Units",
    "check_target",
    "free_path",
    "newest",
    "parse_metrics",
    "read_history",
    "read_origin_tensors",
    "read_probe",
    "read_scores",
    "read_ticket",
    "ticket_hash",
    "write_ticket",
]
