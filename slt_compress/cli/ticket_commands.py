"""The commands that work on existing tickets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import Json
from slt_compress.cli.plain_lines import say

tickets_app = typer.Typer(help="Compare and combine tickets of the same weights.",
                          no_args_is_help=True)  # fmt: skip
First = Annotated[Path, typer.Argument(metavar="A", help="A ticket.")]
Second = Annotated[Path, typer.Argument(metavar="B", help="Another ticket of the same weights.")]


@tickets_app.command("diff")
def _diff(first: First, second: Second, as_json: Json = False) -> None:
    """Compare two masks: overlap (share of A) and intersection over union."""
    from slt_compress.tickets.deriving import difference

    result = difference(first, second)
    if as_json:
        print_json(result.to_dict())
        return
    from rich.table import Table

    from slt_compress.cli.screen import Screen

    table = Table("layer", "A", "B", "both", "overlap", "IoU", title="Kept by A, by B and by both")
    for layer in result.layers:
        counts = [f"{count:,}" for count in (*layer.kept, layer.both)]
        table.add_row(layer.name, *counts, f"{layer.overlap:.2%}", f"{layer.iou:.2%}")
    Screen().print(table)
    say(f"overlap: {result.overlap:.4%} of A; intersection over union: {result.iou:.4%}")


@tickets_app.command("merge")
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
