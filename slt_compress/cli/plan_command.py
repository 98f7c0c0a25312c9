"""The command `plan`."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import Full, Json, RecipeName, Set, Source
from slt_compress.cli.quick_checks import check_typed
from slt_compress.cli.recipe_flags import Flags, recipe_flags, resolve, start_of


@recipe_flags("plan")
def plan(
    source: Source,
    flags: Flags,
    recipe: RecipeName = None,
    set_: Set = None,
    full: Full = False,
    as_json: Json = False,
) -> None:
    """Show what a search would gate, need and produce; weights are loaded only to time it."""
    check_typed(source, set_, flags)
    with _no_collecting():
        resolved = resolve(start_of(recipe), set_, flags)
        from slt_compress import api

        made = api.plan(source, recipe=resolved)
        if as_json:
            print_json(made.to_dict(), "plan")
            return
        from slt_compress.cli.console import print_plan

        print_plan(made, full=full, precision=resolved.training.precision)


@contextmanager
def _no_collecting() -> Iterator[None]:
    """Turn garbage collection off: it takes an eighth of the imports, which are most of a plan."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            # move all objects to the oldest generation unscanned: otherwise the next allocation
            # would scan them
            gc.freeze()
            gc.unfreeze()
            gc.enable()
