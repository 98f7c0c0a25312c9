"""The command `plan`, which looks before a search leaps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import Json, RecipeName, Set, Source
from slt_compress.cli.recipe_flags import Flags, recipe_flags, resolve, start_of


@recipe_flags("plan")
def plan(
    source: Source,
    flags: Flags,
    recipe: RecipeName = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Show what a search would gate, need and give; weights are loaded only to time it."""
    with _no_collecting():
        resolved = resolve(start_of(recipe), set_, flags)
        from slt_compress import api

        found = api.plan(source, recipe=resolved)
        if as_json:
            print_json(found.to_dict())
            return
        from slt_compress.cli.console import print_plan

        print_plan(found)


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Nearly all of a plan's time goes into imports, an eighth of that into looking for garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            # all of it goes to the oldest generation unseen: else the next object that is made
            # would have everything looked through
            gc.freeze()
            gc.unfreeze()
            gc.enable()
