"""A search from the command line: shown and tracked while it runs, summed up when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from slt_compress import api
from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import is_main_process
from slt_compress.cli.plain_lines import say
from slt_compress.cli.pushing import push_if_asked
from slt_compress.cli.summary import print_summary
from slt_compress.cli.watching import watched
from slt_compress.searching.events import Event, OnEvent
from slt_compress.searching.recipes import Recipe
from slt_compress.tickets import Ticket
from slt_compress.tickets.run_facts import seconds_of

if TYPE_CHECKING:
    from slt_compress.searching.trackers import Trackers


def searched(
    source: str,
    recipe: Recipe,
    out: Path | None,
    *,
    trackers: Sequence[str],
    quiet: bool,
    as_json: bool,
    save_every: float,
    fresh: bool,
) -> Ticket:
    """Search, and show and track what happens.

    Raises:
        SltError: as `slt_compress.search`; or a tracker cannot be used.
    """
    quiet = quiet or not is_main_process()
    with watched(quiet=quiet, as_json=as_json) as tell, _tracked(trackers, source, recipe) as track:
        return api.search(source, out=out, recipe=recipe, progress=_both(tell, track),
                          save_every=save_every, fresh=fresh)  # fmt: skip


@contextmanager
def _tracked(names: Sequence[str], source: str, recipe: Recipe) -> Iterator[Trackers | None]:
    if not names or not is_main_process():
        yield None
        return
    from slt_compress.searching.recording import model_name
    from slt_compress.searching.trackers import tracked

    config = {"source": source, **recipe.to_dict()}
    with tracked(names, f"slt-compress-{model_name(source)}", config) as trackers:
        yield trackers


def _both(tell: OnEvent, track: OnEvent | None) -> OnEvent:
    if track is None:
        return tell

    def hear(event: Event) -> None:
        tell(event)
        track(event)

    return hear


def conclude(ticket: Path, push_to_hub: str | None, *, quiet: bool, as_json: bool) -> None:
    """What follows a search: its summary, a push, and the path alone on stdout."""
    made = api.report(ticket)
    if not quiet and not as_json:
        print_summary(made, ticket, seconds_of(ticket))
    push_if_asked(ticket, push_to_hub, quiet=quiet)
    if as_json:
        print_json({"ticket": str(ticket), **made.to_dict()}, "search")
    else:
        say(ticket)
