"""The command `audit`: what became of a ticket in a model that went on from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import Json, Origin
from slt_compress.cli.plain_lines import say

if TYPE_CHECKING:
    from slt_compress.evidence.audit import Audit

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A folder or .safetensors file, quantised or not; .gguf; .onnx."
    ),
]
OfTicket = Annotated[
    Path | None, typer.Option("--ticket", help="Default: the newest ticket in tickets/.")
]


def audit(
    model: Model,
    ticket: OfTicket = None,
    origin: Origin = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 unless every zero is kept.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell what a quantised, fine-tuned, merged or converted model still holds of a ticket."""
    from slt_compress.evidence.audit import audit_model
    from slt_compress.tickets import newest

    found = audit_model(model, newest(Path("tickets")) if ticket is None else ticket, origin=origin)
    if as_json:
        print_json(found.to_dict(), "audit")
    else:
        _print(found)
    if strict and not found.holds:
        raise typer.Exit(1)


def _print(found: Audit) -> None:
    from rich.table import Table

    from slt_compress.cli.screen import Screen

    table = Table("layer", "stored as", "zeros kept", "zeros lost", "kept, now 0", "kept, changed",
                  "by", title=f"{found.model}: {found.kind}")  # fmt: skip
    for layer in found.layers:
        if layer.stored is None:
            table.add_row(layer.name, "not found")
            continue
        known = layer.kept_changed is not None and layer.change is not None
        table.add_row(
            layer.name,
            layer.encoding + ("" if layer.how == "as stored" else f", {layer.how}"),
            f"{layer.zeros - layer.zeros_lost:,}",
            f"{layer.zeros_lost:,}",
            f"{layer.kept_zeroed:,}",
            f"{layer.kept_changed:,}" if known else "?",
            f"{layer.change:.2%}" if known else "?",
        )
    Screen().print(table)
    for note in found.notes:
        say(f"note: {note}")
    say(found.verdict)
