"""Reserving: where a search writes to, and what has to be the same for one that goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from slt_compress.anatomy.states import environment
from slt_compress.checkpoints import Checkpoint, origin_record
from slt_compress.data import SearchData
from slt_compress.errors import SltError, TicketError
from slt_compress.searching.accelerators import in_main
from slt_compress.searching.batch_hashes import batch_hash
from slt_compress.searching.recipes import Recipe, parse_recipe
from slt_compress.searching.recording import Target
from slt_compress.searching.resuming import (
    ABOUT,
    LOCK,
    SAVE_EVERY,
    SUFFIX,
    BusyError,
    SearchFolder,
    search_folder,
)
from slt_compress.searching.setup import SearchSetup
from slt_compress.storage.files import json_text, read_json, sha256_tensors
from slt_compress.storage.locks import locked
from slt_compress.tickets.places import MANIFEST


@contextmanager
def reserved(
    accelerator: Accelerator,
    target: Target,
    about: Mapping[str, Any],
    *,
    fresh: bool = False,
    save_every: float = SAVE_EVERY,
) -> Iterator[tuple[Target, SearchFolder]]:
    """The target of a search and, beside it, the folder of its progress; the main process locks it.

    A free name that another process is searching for is passed over.

    Raises:
        TicketError: see `search_folder`.
    """
    with ExitStack() as held:
        stem = in_main(accelerator, lambda: _hold(held, target, about, fresh=fresh))
        yield (
            replace(target, stem=stem),
            SearchFolder(
                target.parent / (stem + SUFFIX), save_every, writes=accelerator.is_main_process
            ),
        )


def _hold(held: ExitStack, target: Target, about: Mapping[str, Any], *, fresh: bool) -> str:
    """Lock the first candidate that no other process holds; its name."""
    for path in _candidates(target):
        try:
            beside = path.with_name(path.name + SUFFIX)
            held.enter_context(search_folder(beside, about, fresh=fresh))
        except BusyError:
            if not target.free:
                raise
            continue
        return path.name
    raise TicketError(f"{target.parent} has no free name for {target.stem}")


def forget_finished(ticket: Path) -> None:
    """Remove the progress of a search that was killed after it had written its ticket.

    It goes only if its recipe and weights are those of the ticket beside it.
    """
    left = ticket.with_name(ticket.name + SUFFIX)
    if not (left / ABOUT).is_file() or not (ticket / MANIFEST).is_file():
        return
    with suppress(SltError, OSError):
        about, written = read_json(left / ABOUT, SltError), read_json(ticket / MANIFEST, SltError)
        hashed = dict(about.get("origin") or {}).get("weights_hash")
        if (about.get("recipe"), hashed) == (written.get("recipe"), written.get("weights_hash")):
            with locked(left / LOCK):
                shutil.rmtree(left, ignore_errors=True)


def _candidates(target: Target) -> Iterator[Path]:
    """The path of a target; of a free one, all that do not exist yet, in order."""
    further = (target.parent / f"{target.stem}-{number}" for number in count(2))
    for path in chain([target.parent / target.stem], further if target.free else ()):
        if not target.free or not path.exists():
            yield path


def about_search(
    setup: SearchSetup, checkpoint: Checkpoint, prepared: SearchData | None, recipe: Recipe
) -> dict[str, Any]:
    """What has to be the same for an interrupted search to go on, ready for JSON.

    A changed data set shows in its splits or in the first training batch, which is drawn from the
    whole split.
    """
    record = origin_record(checkpoint)
    origin = {key: record[key] for key in ("kind", "source", "revision", "init", "versions")}
    content = {
        "origin": {**origin, "weights_hash": sha256_tensors(setup.weights())},
        "recipe": recipe.to_dict(),
        "data": {
            "spec": None if prepared is None else prepared.spec,
            "splits": None if prepared is None else dict(prepared.splits),
            "first_batch": batch_hash(next(iter(setup.workload.train.epoch(0)))),
        },
        "environment": environment(setup.module),
    }
    return dict(json.loads(json_text(content)))


def interrupted(folder: Path) -> tuple[str, Recipe, Path]:
    """Source, recipe and ticket path of an interrupted search, from its folder.

    Raises:
        TicketError: it is not the folder of an interrupted search, or the search was on a module
            of the user's own.
        RecipeError: the recipe in it is damaged.
    """
    folder = folder if folder.name.endswith(SUFFIX) else folder.with_name(folder.name + SUFFIX)
    if not (folder / ABOUT).is_file():
        raise TicketError(f"{folder} is not the folder of an interrupted search")
    about = read_json(folder / ABOUT, TicketError)
    origin, recipe = about.get("origin"), about.get("recipe")
    if not isinstance(origin, dict) or not isinstance(recipe, dict):
        raise TicketError(f"{folder / ABOUT} is damaged; start over with --fresh")
    if origin.get("kind") == "module":
        raise TicketError(
            f"{folder} is of a module of your own: repeat its call of slt_compress.search"
        )
    ticket = folder.with_name(folder.name.removesuffix(SUFFIX))
    return str(origin.get("source")), parse_recipe(recipe), ticket
