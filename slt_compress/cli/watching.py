"""Watching: a running search on stderr, live, as dated lines, or as JSON lines for machines."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.live import Live

from slt_compress.cli.following import Following
from slt_compress.cli.json_output import print_json_line
from slt_compress.cli.live import lines
from slt_compress.cli.log_lines import log_lines
from slt_compress.cli.plain_lines import say
from slt_compress.cli.screen import Screen, Text, stacked
from slt_compress.cli.subjects import hanging, line_of
from slt_compress.searching.comparing import OnRow, Row
from slt_compress.searching.events import (
    Advanced,
    Event,
    HeldOut,
    OnEvent,
    Part,
    Result,
    unheard,
)
from slt_compress.searching.state import Step

# Plain lines: at least one in so many seconds, and one for each of so many shares of the steps.
_QUIET_SECONDS, _SHARES = 20.0, 20
_ADVANCED_SECONDS = 1.0  # between JSON lines of one measurement


@contextmanager
def watched(*, quiet: bool, as_json: bool = False) -> Iterator[OnEvent]:
    """Show the events of a search on stderr for the length of the block."""
    with _watched(quiet=quiet, as_json=as_json) as (tell, _):
        yield tell


@contextmanager
def watched_rows(*, quiet: bool, as_json: bool = False) -> Iterator[tuple[OnEvent, OnRow | None]]:
    """Show the events of a comparison on stderr, and a line for each search that has ended."""
    with _watched(quiet=quiet, as_json=as_json) as (tell, write):
        yield tell, None if quiet else lambda *row: write(_row_line(*row))


@contextmanager
def _watched(*, quiet: bool, as_json: bool) -> Iterator[tuple[OnEvent, Callable[[str], None]]]:
    screen = Screen(stderr=True)
    if as_json:
        with log_lines(quiet=quiet, emit=_json_log):
            yield unheard if quiet else JsonLines(), _json_text
    elif quiet:
        with log_lines(quiet=True):
            yield unheard, _line
    elif screen.is_terminal:
        following = Following()

        def frame() -> Text:
            return stacked(*lines(following, screen.width))

        def write(text: str) -> None:
            screen.print(hanging(text, screen.width), soft_wrap=True)

        with (
            Live(console=screen, transient=True, refresh_per_second=8, get_renderable=frame),
            log_lines(quiet=False, emit=lambda record, text: write(text)),
        ):
            yield _with_time(following, write), write
    else:
        with log_lines(quiet=False):
            yield DatedLines(Following()), _line


def _with_time(following: Following, write: Callable[[str], None]) -> OnEvent:
    def hear(event: Event) -> None:
        following.hear(event)
        if isinstance(event, Step) and (text := following.time_line()):
            write(line_of("time", text))

    return hear


class DatedLines:
    """Plain lines with date and time, for a log file: parts, steps now and then, measurements."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._last = -math.inf
        self._share = -1

    def __call__(self, event: Event) -> None:
        """Take an event in, and print a line if it is time for one."""
        following = self._following
        following.hear(event)
        if isinstance(event, Part):
            if event.name not in ("search", "select"):
                self._say(event.title)
            return
        if isinstance(event, HeldOut | Result):
            return
        if isinstance(event, Step) and (text := following.time_line()):
            _line(line_of("time", text))
        if self._is_due(event):
            self._say(_progress(following))

    def _is_due(self, event: Event) -> bool:
        following = self._following
        waited = following.clock() - self._last >= _QUIET_SECONDS
        if isinstance(event, Advanced):
            return waited and not following.is_searching
        total = following.total or 1
        share, before = following.done * _SHARES // total, self._share
        self._share = share
        return waited or following.done in (1, total) or share != before

    def _say(self, text: str) -> None:
        self._last = self._following.clock()
        _line(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")


def _progress(following: Following) -> str:
    noun = "step " if following.is_searching else ""
    total = "" if following.total is None else f"/{following.total:,}"
    parts = [f"{noun}{following.done:,}{total}"]
    parts += following.figures() if following.is_searching else ()
    return f"{following.part}: {', '.join([*parts, *filter(None, [following.left()])])}"


class JsonLines:
    """Events as JSON, one on a line, each with its `event` and `time` (UTC)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._advanced = clock, -math.inf

    def __call__(self, event: Event) -> None:
        """Print an event; those of a measurement at most once a second, and the last one."""
        if isinstance(event, Part):
            _json_line("part", {"part": event.name, "title": event.title})
        elif isinstance(event, HeldOut):
            _json_line("held_out", {"step": event.index, "loss": event.loss})
        elif isinstance(event, Advanced):
            now = self._clock()
            if now - self._advanced >= _ADVANCED_SECONDS or event.done == event.total:
                self._advanced = now
                _json_line("advanced", asdict(event))
        elif isinstance(event, Result):
            content = {"metrics": dict(event.metrics), "sparsity": event.sparsity}
            _json_line("result", content)
        else:
            _json_line("step", asdict(event))


def _json_log(record: Any, text: str) -> None:
    """A record of the log as JSON: what a search announces, or a warning."""
    subject = getattr(record, "subject", None)
    if subject is not None:
        _json_line("announced", {"subject": subject, "text": record.text})
    else:
        _json_line("log", {"level": record.levelname.lower(), "text": text})


def _json_text(text: str) -> None:
    _json_line("row", {"text": text})


def _json_line(event: str, content: dict[str, Any]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    print_json_line({"event": event, "time": now, **content}, "event")


def _line(text: str) -> None:
    say(text, err=True)


def _row_line(row: Row, number: int, total: int) -> str:
    result = row.error
    if row.hard is not None:
        result = ", ".join(f"{name} {value:.4f}" for name, value in row.hard.items())
    what = f"{row.method} at {row.sparsity}, seed {row.seed}"
    return f"[{number}/{total}] {what}: {result} ({row.seconds:.1f} s)"
