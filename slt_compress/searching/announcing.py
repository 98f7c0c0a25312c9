"""Announcing: what a search is about to do, a line for each subject, said before its first step.

The lines go to the logger of the package. Each record has the `subject` that it is about, so that
a program can tell them apart. The time that a search takes is known after its first steps, and the
command line adds it then.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from slt_compress.gates import Learned, Swaps
from slt_compress.searching.memory_plan import memory_of
from slt_compress.searching.objectives import objective_name
from slt_compress.storage.quantities import bytes_in_words

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data import DefaultData, SearchData
    from slt_compress.searching.recipes import Recipe
    from slt_compress.searching.setup import SearchSetup

LOGGER = logging.getLogger("slt_compress")
"""The command line shows its lines on stderr; a program that sets up no logging sees warnings."""

WIDTH = 10  # of the column of subjects
_OBJECTIVES = {
    "distill": "matching the dense network's outputs",
    "task": "minimising the loss on the labels",
    "lm": "minimising the loss of the next token",
    "reconstruct": "matching the dense blocks' outputs, block by block",
}


def announce_default(default: DefaultData, task: str) -> None:
    """Say which data set is used where none is named, before any of it is downloaded."""
    _say("default", f"no --dataset is given: {default.spec}, the default for {task} "
         f"({default.download})")  # fmt: skip


def announce_opened(checkpoint: Checkpoint, data: SearchData) -> None:
    """Say what was opened, with a warning for everything that looks wrong about the data."""
    _say("source", _source(checkpoint))
    _say("data", data.overview)
    splits = data.splits
    _say("examples", f"{splits['train']:,} to search on, {splits['held_out']:,} held out to choose "
         f"the mask by, {splits['test']:,} to measure on")  # fmt: skip
    for warning in data.warnings:
        LOGGER.warning("warning: %s", warning)


def announce_search(
    setup: SearchSetup, checkpoint: Checkpoint, recipe: Recipe, ticket: Path
) -> None:
    """Say what is gated, how much is kept, how it is searched, and where the ticket goes."""
    if checkpoint.kind == "module":
        _say("source", "a module of your own, with your own batches and loss")
    plan = setup.plan
    total = sum(parameter.numel() for parameter in setup.module.parameters())
    _say("sites", f"{len(plan.sites):,} sites with {plan.gated:,} of {total:,} parameters are "
         f"gated; {len(plan.skipped):,} other parameters stay as they are")  # fmt: skip
    kept = round(setup.budget.density * plan.gated)
    _say("target", f"sparsity {recipe.sparsity:.4g}: {kept:,} weights are kept ({recipe.pattern}, "
         f"scope {recipe.scope})")  # fmt: skip
    _say("method", _method(setup, checkpoint, recipe))
    _say("memory", _memory(setup, recipe))
    _say("ticket", str(ticket))


def _memory(setup: SearchSetup, recipe: Recipe) -> str:
    """What the search needs besides activations, by its precision and optimizer."""
    if recipe.objective.name == "reconstruct":
        return "that of one block at a time"
    memory, training = memory_of(setup.module, setup.plan, recipe, setup.method), setup.training
    rows = memory.get(training.precision) or next(iter(memory.values()))
    parts = rows.get(training.optimizer or "adam") or next(iter(rows.values()))
    return f"about {bytes_in_words(parts['total'])} besides activations"


def _source(checkpoint: Checkpoint) -> str:
    at = f" at revision {checkpoint.revision[:12]}" if checkpoint.revision else ""
    init = checkpoint.init
    random = "" if init is None else f", random weights ({init.scheme}, seed {init.seed})"
    return f"{checkpoint.source}{at}, a model of {checkpoint.family} for {checkpoint.task}{random}"


def _method(setup: SearchSetup, checkpoint: Checkpoint, recipe: Recipe) -> str:
    training, name = setup.training, setup.method.name
    if isinstance(setup.method, Learned):
        steps = training.total_steps(len(setup.workload.train))
        how = "minimising your own loss"
        if checkpoint.kind != "module":
            chosen = objective_name(recipe.objective, random_init=checkpoint.init is not None)
            how = _OBJECTIVES[chosen]
        size = f" of {training.batch_size} examples" if checkpoint.kind != "module" else ""
        return f"{name}, {steps:,} steps{size}, {how}; seed {training.seed}"
    passes = "exchanges block by block" if isinstance(setup.method, Swaps) else "takes no steps"
    return f"{name}, {passes}; seed {training.seed}"


def _say(subject: str, text: str) -> None:
    LOGGER.info("%s", f"{subject:<{WIDTH}}{text}", extra={"subject": subject, "text": text})
