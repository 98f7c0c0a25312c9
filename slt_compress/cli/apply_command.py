"""The command `apply`: the mask of a ticket on weights that moved since."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slt_compress.cli.plain_lines import say


def apply(
    ticket: Annotated[Path, typer.Argument(metavar="TICKET", help="Whose mask.")],
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A folder: fine-tuned, merged, or the origin.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="A new folder for the model.")],
) -> None:
    """Set to 0 what a ticket dropped, in a model whose kept weights have other values now."""
    from slt_compress.exporting.applying import apply_ticket

    found = apply_ticket(ticket, model, out)
    say(found.sentence)
    say(found.path)
