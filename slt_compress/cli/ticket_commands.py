"""The commands that work on existing tickets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slt_compress.cli.help_pages import Command, Group
from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import Full, Json
from slt_compress.cli.plain_lines import say

tickets_app = typer.Typer(cls=Group, help="List, compare and combine tickets.",
                          no_args_is_help=True)  # fmt: skip
First = Annotated[Path, typer.Argument(metavar="A", help="A ticket.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="Another ticket of the same weights.")]


@tickets_app.command("diff", cls=Command)
def _diff(first: First, second: Second, full: Full = False, as_json: Json = False) -> None:
    """Compare two masks: overlap (share of A) and intersection over union."""
    from slt_compress.tickets.deriving import difference

    result = difference(first, second)
    if as_json:
        print_json(result.to_dict(), "difference")
        return
    from slt_compress.cli.console import standard_output
    from slt_compress.cli.ticket_tables import difference_table

    screen = standard_output()
    say(
        f"overlap: {100 * result.overlap:.2f} % of A; intersection over union: "
        f"{100 * result.iou:.2f} %"
    )
    screen.print(difference_table(result, screen.width, full=full))


@tickets_app.command("list", cls=Command)
def _list(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder of tickets.")] = Path(
        "tickets"
    ),
    as_json: Json = False,
) -> None:
    """List the tickets in a folder, the newest first."""
    from slt_compress.tickets.listing import list_tickets

    listed = list_tickets(folder)
    if as_json:
        print_json({"tickets": [entry.to_dict() for entry in listed]}, "tickets")
        return
    from slt_compress.cli.console import standard_output
    from slt_compress.cli.ticket_tables import ticket_table

    screen = standard_output()
    screen.print(ticket_table(listed, screen.width))


@tickets_app.command("merge", cls=Command)
def _merge(
    first: First,
    second: Second,
    op: Annotated[str, typer.Option(help="and: keep what both keep; or: keep what either keeps.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the ticket to.")],
) -> None:
    """Combine two tickets into a new one, without measuring it."""
    from slt_compress.tickets.deriving import Operation, merge

    operations: dict[str, Operation] = {"and": "and", "or": "or"}
    if op not in operations:
        raise typer.BadParameter(f"{op!r} is neither `and` nor `or`", param_hint="--op")
    say(merge(first, second, operations[op], out).path)


def import_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A checkpoint folder with zeros.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write the ticket to.")],
) -> None:
    """Make a ticket from a checkpoint pruned elsewhere (zeros, masks or sparse-bitmask)."""
    from slt_compress.searching.recipes import Recipe
    from slt_compress.tickets.importing import import_checkpoint

    say(import_checkpoint(path, out, recipe=Recipe().to_dict()).path)
