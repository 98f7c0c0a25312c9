"""Where tickets lie: the file names of one, the newest of many, a free path for the next."""

from __future__ import annotations

from pathlib import Path

from slt_compress.errors import TicketError
from slt_compress.storage.writable import prove_writable

# The newest version; a ticket is written in the first one that says all of it: 1, or 2 with flips,
# or 3 with numbers trained beside the mask (gains of units, tuned parameters), or 4 with orders of
# inputs.
KIND = ("slt-ticket", 4)
MANIFEST = "ticket.json"
MASKS = "masks.safetensors"
HISTORY = "history.jsonl"
PROBE = "probe.safetensors"
SCORES = "scores.safetensors"
ORIGIN = "origin.safetensors"
FLIP_SUFFIX = ".flip"
BUFFER_PREFIX = "buffer/"
STORED_PREFIX = "stored/"
TUNED_PREFIX = "tuned/"


def newest(folder: Path = Path("tickets")) -> Path:
    """Find the ticket in `folder` whose manifest was written last.

    Raises:
        TicketError: there is none.
    """
    manifests = [file for file in folder.glob(f"*/{MANIFEST}") if file.parent.name[0] != "."]
    if not manifests:
        raise TicketError(
            f"there is no ticket in {folder}; make one with `slt-compress search` or name its path"
        )
    return max(manifests, key=lambda file: (file.stat().st_mtime_ns, file.parent.name)).parent


def free_path(parent: Path, stem: str) -> Path:
    """Find the first of `stem`, `stem-2`, `stem-3`, … that does not exist in `parent`."""
    path, number = parent / stem, 1
    while path.exists():
        number += 1
        path = parent / f"{stem}-{number}"
    return path


def check_target(path: Path) -> None:
    """Refuse a folder that a ticket cannot be written to.

    Raises:
        TicketError: something is there already, or there is no right to write.
    """
    if path.is_dir() and any(path.iterdir()):
        raise TicketError(f"{path} exists and is not empty: choose another folder")
    places = (path.absolute(), *path.absolute().parents)
    nearest = next(place for place in places if place.exists() or place.is_symlink())
    if not nearest.is_dir():
        raise TicketError(f"{nearest} is not a folder: choose another place for the ticket")
    try:
        prove_writable(path.absolute())
    except OSError as cause:
        raise TicketError(
            f"{nearest} cannot be written ({cause.strerror or cause}): choose another place for "
            "the ticket"
        ) from cause
