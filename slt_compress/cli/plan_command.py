"""The command `plan`, which looks before a search leaps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import (
    BatchSize,
    Dataset,
    Epochs,
    Init,
    Json,
    MethodName,
    Pattern,
    RecipeName,
    Revision,
    Set,
    Source,
    Steps,
    TargetSparsity,
    Weights,
    resolve,
    start_of,
)


def plan(
    source: Source,
    target_sparsity: TargetSparsity = None,
    method: MethodName = None,
    pattern: Pattern = None,
    dataset: Dataset = None,
    init: Init = None,
    weights: Weights = None,
    revision: Revision = None,
    steps: Steps = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    recipe: RecipeName = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Show what a search would gate, need and give; no weights are loaded but to time it."""
    flags = {
        "target_sparsity": target_sparsity, "method.name": method, "pattern": pattern,
        "dataset": dataset, "init": init, "weights": weights, "revision": revision,
        "training.steps": steps, "training.epochs": epochs, "training.batch_size": batch_size,
    }  # fmt: skip
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
