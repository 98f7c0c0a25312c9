"""The command `report`: one ticket or export, or several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import Full, Json
from slt_compress.cli.plain_lines import say

if TYPE_CHECKING:
    from slt_compress.evidence.reporting import Report

Paths = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[PATH]...", help="Default: the newest ticket in tickets/."),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write one offline page, with images and curves."),
]


def report(
    path: Paths = None,
    html: Html = None,
    full: Full = False,
    as_json: Json = False,
) -> None:
    """Show what a ticket or exported folder achieved: the verdict first, then the layers."""
    from slt_compress import api
    from slt_compress.tickets import newest

    paths = path or [newest(api.TICKETS)]
    if html is not None:
        _write_page(paths, html, as_json=as_json)
        return
    reports = [(str(folder), api.report(folder)) for folder in paths]
    if as_json:
        print_json(_content(reports), "report")
    else:
        _print(reports, full=full)


def _content(reports: list[tuple[str, Report]]) -> dict[str, object]:
    """One report as it is; several of them as a list, each with its path."""
    if len(reports) == 1:
        return reports[0][1].to_dict()
    return {"reports": [{"path": path, **made.to_dict()} for path, made in reports]}


def _print(reports: list[tuple[str, Report]], *, full: bool) -> None:
    from slt_compress.cli.console import standard_output
    from slt_compress.cli.report_view import print_report, tickets_side_by_side
    from slt_compress.tickets.run_facts import seconds_of

    screen = standard_output()
    if len(reports) > 1:
        screen.print(tickets_side_by_side(reports, screen.width))
        return
    path, made = reports[0]
    print_report(screen, made, Path(path), seconds_of(Path(path)), full=full)


def _write_page(paths: list[Path], file: Path, *, as_json: bool) -> None:
    from slt_compress.pages.writing import write_page

    size = write_page(paths, file)
    if as_json:
        print_json({"path": str(file), "bytes": size}, "page")
    else:
        say(file)
