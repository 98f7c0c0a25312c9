"""Forecasts: how long a search will take, measured on a few of its steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import inf
from pathlib import Path

from torch import nn

from slt_compress.anatomy.blocks import block_names
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.quiet import quiet
from slt_compress.gates import Learned, Method
from slt_compress.searching.inside import sites_of
from slt_compress.searching.memory_plan import available_memory, memory_of, smaller_trainings
from slt_compress.searching.planning import (
    Forecast,
    Plan,
    make_plan,
    missing_weights,
    search_command,
)
from slt_compress.searching.recipes import Recipe
from slt_compress.searching.search import Search
from slt_compress.searching.settings import Training, with_defaults
from slt_compress.searching.workloads import (
    checkpoint_workload,
    is_at_hand,
    obstacles,
    open_source,
    sketch_source,
)
from slt_compress.sites.sites import SitePlan

# A plan must stay quick: it times no search that needs more memory than this.
_LIMIT_GIB = 8


def plan_search(source: str | Path | nn.Module, recipe: Recipe, method: Method) -> Plan:
    """The plan of a search, with its forecast; see `slt_compress.plan`.

    Raises:
        SltError: the source, budget or recipe cannot be used, or nothing would be gated.
    """
    sketch = sketch_source(source, recipe)
    sites = sites_of(sketch, recipe)
    plan = make_plan(sketch, sites, recipe, method=method, warnings=obstacles(sketch))
    short = too_little_memory(plan, sketch, sites, recipe, method, available_memory())
    plan = replace(plan, warnings=(*plan.warnings, *short))
    return replace(plan, forecast=forecast(plan, sketch, sites, recipe, method))


def too_little_memory(
    plan: Plan,
    sketch: Checkpoint,
    sites: SitePlan,
    recipe: Recipe,
    method: Method,
    available: int | None,
) -> tuple[str, ...]:
    """A sentence if the search needs more memory than there is, with the command that needs less.

    Args:
        plan, sketch, sites, recipe, method: as for `forecast`.
        available: bytes; None where that is not known, or on a device with a memory of its own.
    """
    if available is None or recipe.training.device not in (None, "cpu"):
        return ()
    needed = _needed(plan.memory, recipe, method)
    if needed <= available:
        return ()
    short = (
        f"this search needs {needed / 2**30:.1f} GiB and its activations, and this machine has "
        f"{available / 2**30:.1f} GiB free"
    )
    for smaller in _smaller_recipes(recipe, method) if block_names(sketch.module) else ():
        less = _needed(memory_of(sketch.module, sites, smaller, method), smaller, method)
        if less <= available:
            command = search_command(sketch.source, smaller)
            return (f"{short}; this needs {less / 2**30:.1f} GiB and fewer activations: {command}",)
    return (f"{short}; no setting of this method needs so little",)


def _smaller_recipes(recipe: Recipe, method: Method) -> Iterator[Recipe]:
    """Recipes that need less memory, the one that costs least time and quality first."""
    if recipe.objective.name == "reconstruct":
        return
    if isinstance(method, Learned):
        for training in smaller_trainings(recipe.training):
            yield replace(recipe, training=training)
    if not (recipe.training.polish or recipe.save_scores or recipe.permute):
        yield replace(recipe, objective=replace(recipe.objective, name="reconstruct"))


def _needed(
    memory: Mapping[str, Mapping[str, Mapping[str, int]]], recipe: Recipe, method: Method
) -> int:
    """Bytes of the search that a recipe is for."""
    if not isinstance(method, Learned):
        return memory["no"]["none"]["total"]
    optimizer = recipe.training.optimizer
    if optimizer is None:
        optimizer = _training_of(recipe, method).optimizer or "adam"
    return memory[recipe.training.precision][optimizer]["total"]


def forecast(
    plan: Plan, sketch: Checkpoint, sites: SitePlan, recipe: Recipe, method: Method
) -> Forecast:
    """Time two steps of the search if weights and data are on this machine.

    Nothing is downloaded. An error becomes the note of a forecast without figures.

    Args:
        plan: the plan of the search, for its memory.
        sketch: the planned checkpoint, on the meta device.
        sites: the sites of the sketch.
        recipe, method: the recipe and the method of the search.
    """
    try:
        missing = _missing(plan, sketch, recipe, method)
        if missing:
            return Forecast(note=f"not measured: {missing}")
        with quiet():
            return _measured(sketch, sites, recipe, method)
    except Exception as error:  # from the data, the model's own code or a lack of memory
        return Forecast(note=f"not measured: {' '.join(str(error).split()) or repr(error)}")


def _missing(plan: Plan, sketch: Checkpoint, recipe: Recipe, method: Method) -> str | None:
    """Why no step can be timed here; None if one can be tried."""
    if sketch.kind == "module":
        return "no batches are given for a module of your own"
    if not isinstance(method, Learned):
        return f"{method.name} takes no steps"
    if recipe.objective.name == "reconstruct":
        return "a search by blocks takes its steps for one block after the other"
    if missing_weights(sketch):
        return "there are no weights"
    if sketch.kind == "hub":
        return "the weights are on the hub"
    if recipe.dataset is None:
        return "no data set is given (--dataset)"
    if not is_at_hand(recipe.dataset):
        return f"the data set {recipe.dataset} is not on this machine"
    _training_of(recipe, method)  # which refuses an optimizer without a learning rate
    needed = _needed(plan.memory, recipe, method) / 2**30
    if needed > _LIMIT_GIB:
        return f"it needs {needed:.1f} GiB, and a plan uses at most {_LIMIT_GIB} GiB"
    return None


def _training_of(recipe: Recipe, method: Method) -> Training:
    if not isinstance(method, Learned):
        return recipe.training
    return with_defaults(recipe.training, method, recipe.budget(), random_init=bool(recipe.init),
                   inside=recipe.inside is not None)  # fmt: skip


def _measured(sketch: Checkpoint, sites: SitePlan, recipe: Recipe, method: Method) -> Forecast:
    # the local folder: a hub id would make the hub be asked for a newer revision
    source = sketch.folder or sketch.source
    checkpoint, data = open_source(source, replace(recipe, revision=None))
    random_init, training = checkpoint.init is not None, _training_of(recipe, method)
    workload = checkpoint_workload(checkpoint, data, recipe.objective)
    pace = Search(
        module=checkpoint.module, plan=sites, workload=workload, budget=recipe.budget(),
        method=method, training=training, random_init=random_init, tuning=recipe.tuning,
    ).pace()  # fmt: skip
    steps = training.total_steps(len(data.train))
    return Forecast(
        seconds_per_step=pace,
        steps=steps,
        seconds=min(pace * steps, training.max_time or inf),
        note=f"from two steps of {training.batch_size} examples on this machine",
    )
