"""Pushing what a command wrote: now, or where an earlier run of it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slt_compress.cli.plain_lines import say

if TYPE_CHECKING:
    from slt_compress.artifacts import Artifact
    from slt_compress.searching.recipes import Recipe
    from slt_compress.tickets import Ticket


def push_if_asked(folder: Path, repo: str | None, *, quiet: bool = False) -> None:
    """Upload a folder where that was asked for; the list of files and the address go to stderr.

    Raises:
        SltError: it could not be pushed.
    """
    if repo is None:
        return
    from slt_compress.exporting.pushing import push, upload_list

    if not quiet:
        say(f"pushing to {repo}:", err=True)
        for file in upload_list(folder):
            say(f"  {file.name} ({file.stat().st_size:,} bytes)", err=True)
    say(f"pushed to {push(folder, repo)}", err=True)


def searched_before(
    out: Path | None, repo: str | None, source: str, recipe: Recipe
) -> Ticket | None:
    """The ticket that an earlier run of a search wrote to `out`, and may not have pushed.

    None where nothing is to be pushed, or another search wrote there.
    """
    if repo is None or out is None or not (out / "ticket.json").is_file():
        return None
    from slt_compress.tickets import read_ticket

    ticket = read_ticket(out)
    origin = ticket.origin
    same = str(origin.get("source")) in (source, str(Path(source).expanduser().resolve()))
    return ticket if same and _agrees(recipe.to_dict(), ticket.recipe) else None


def exported_before(
    ticket: Path | None, out: Path | None, repo: str | None, format: str, options: tuple[Any, ...]
) -> Artifact | None:
    """The folder that an earlier run of an export wrote, and may not have pushed.

    None where nothing is to be pushed, or another export wrote there.
    """
    if repo is None or any(value is not None for value in options):
        return None
    from slt_compress.api import EXPORTS, TICKETS
    from slt_compress.artifacts import describe_artifact, is_artifact
    from slt_compress.tickets import newest, ticket_hash

    folder = ticket if ticket is not None else newest(TICKETS)
    target = Path(out or EXPORTS / f"{folder.absolute().name}-{format}")
    if not is_artifact(target):
        return None
    artifact = describe_artifact(target)
    made_of = artifact.manifest.values.get("ticket")
    same = (made_of, artifact.format) == (ticket_hash(folder), format)
    return artifact if same else None


def _agrees(asked: Any, recorded: Any) -> bool:
    """Whether a recorded recipe has all that is asked for; what is left open (None) is free."""
    if asked is None:
        return True
    if isinstance(asked, Mapping) and isinstance(recorded, Mapping):
        return all(_agrees(value, recorded.get(key)) for key, value in asked.items())
    return bool(asked == recorded)
