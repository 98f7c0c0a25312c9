"""The summary that closes a search: what the mask costs, what it saves, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from slt_compress.cli.screen import Screen
from slt_compress.cli.subjects import hanging, line_of
from slt_compress.evidence.reporting import Report
from slt_compress.evidence.telling import best_format, outcome
from slt_compress.storage.quantities import seconds_in_words

_WARNINGS = 5  # that are shown one by one


def print_summary(report: Report, ticket: Path, seconds: float | None) -> None:
    """Print the summary on stderr; stdout is for the path alone."""
    screen = Screen(stderr=True)
    width = screen.width if screen.is_terminal else 10**6
    for subject, text in summary(report, ticket, seconds):
        style = "yellow" if subject == "warning" else ""
        screen.print(hanging(line_of(subject, text), width, style), soft_wrap=True)


def summary(report: Report, ticket: Path, seconds: float | None) -> Iterator[tuple[str, str]]:
    """The lines of the summary, each with its subject.

    Args:
        report: that of the ticket.
        ticket: its folder, for the commands.
        seconds: what the search took; None where that is not known.
    """
    yield from outcome(report)
    if seconds is not None:
        yield "time", seconds_in_words(seconds)
    yield from warned(report)
    path = shlex.quote(str(ticket))
    yield "next", f"slt-compress report {path} --html report.html"
    yield "", f"slt-compress export {path} --format {best_format(report)}"


def warned(report: Report) -> Iterator[tuple[str, str]]:
    """The warnings of a report, the first ones whole and then their number."""
    for warning in report.warnings[:_WARNINGS]:
        yield "warning", warning
    more = len(report.warnings) - _WARNINGS
    if more > 0:
        yield "", f"and {more} more warnings: slt-compress report shows them"
