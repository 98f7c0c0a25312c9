"""The check of an imported ticket: its model is the one that was imported, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator

from slt_compress.evidence.checks import Check
from slt_compress.runtime.opening import Opened
from slt_compress.tickets.imported_masks import hashes


def as_imported(opened: Opened) -> Iterator[Check]:
    """One check where a ticket says what was imported; none for any other folder."""
    imported = opened.ticket.extra.imported if opened.ticket is not None else None
    if imported is None or opened.masks is None:
        return
    wanted, here = imported["tensors"], hashes(opened.module, opened.masks)
    wrong = sorted(n for n in wanted.keys() | here.keys() if wanted.get(n) != here.get(n))
    detail = f"{len(here) - len(wrong)} of {len(here)} tensors are those of the imported model"
    yield Check(
        name="imported", ok=not wrong, detail=detail + "".join(f"; not {n}" for n in wrong[:1])
    )
