"""Running: one search from its source to a written ticket, in one process or in many."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from slt_compress.anatomy.remembering import leaves_unchanged
from slt_compress.anatomy.residence import Residence
from slt_compress.checkpoints import Checkpoint
from slt_compress.errors import RecipeError
from slt_compress.gates import Learned, Method
from slt_compress.searching.accelerators import accelerator_for, in_main
from slt_compress.searching.announcing import announce_search
from slt_compress.searching.events import OnEvent, Part
from slt_compress.searching.inside import sites_of
from slt_compress.searching.preflight import check_module, ordinary_mode
from slt_compress.searching.progress_bars import heard
from slt_compress.searching.recipes import Recipe
from slt_compress.searching.reconstruction import STEPS, Reconstruction
from slt_compress.searching.recording import Target, record
from slt_compress.searching.reserving import about_search, forget_finished, reserved
from slt_compress.searching.search import OnStep, Search
from slt_compress.searching.settings import with_defaults
from slt_compress.searching.setup import Workload
from slt_compress.searching.threads import fitting_threads
from slt_compress.searching.tuning import NO_TUNING
from slt_compress.searching.workloads import open_workload
from slt_compress.tickets import Ticket, read_ticket


@ordinary_mode()
@leaves_unchanged
def run(
    source: str | Path | nn.Module,
    data: str | Iterable[Any] | None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    recipe: Recipe,
    method: Method,
    target: Target,
    *,
    on_step: OnStep | None,
    progress: bool | OnEvent = False,
    save_every: float,
    fresh: bool,
) -> Ticket:
    """Search, and write the ticket; the arguments are those of `slt_compress.search`.

    Raises:
        SltError: the source, data, budget or target cannot be used, or the search diverged.
    """
    check_module(source)
    with (
        accelerator_for(recipe.training) as accelerator,
        heard(progress if accelerator.is_main_process else False) as tell,
    ):
        return _run(
            accelerator, tell, source, data, loss_fn, recipe, method, target,
            on_step=on_step, save_every=save_every, fresh=fresh,
        )  # fmt: skip


def _run(
    accelerator: Accelerator,
    tell: OnEvent,
    source: str | Path | nn.Module,
    data: str | Iterable[Any] | None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    recipe: Recipe,
    method: Method,
    target: Target,
    *,
    on_step: OnStep | None,
    save_every: float,
    fresh: bool,
) -> Ticket:
    """`run` on the devices and processes of an accelerator."""
    started = time.monotonic()
    tell(Part("open"))
    in_main(accelerator, partial(_check, target))
    with accelerator.main_process_first():  # which downloads, where there is anything to
        checkpoint, prepared, workload = open_workload(source, data, loss_fn, recipe)
    recipe = _with_defaults(recipe, method, random_init=checkpoint.init is not None)
    one = _search_of(checkpoint, workload, recipe, method, tell, accelerator)
    about = about_search(one, checkpoint, prepared, recipe)
    with reserved(accelerator, target, about, fresh=fresh, save_every=save_every) as (
        target,
        folder,
    ):
        target.check()  # another search may have written there before this one had the lock
        announce_search(one, checkpoint, recipe, target.path())
        with fitting_threads(one.module, recipe.training.batch_size) as outside:
            result = replace(one, probe_threads=outside).run(on_step, folder, accelerator)
        tell(Part("write"))

        def write() -> Path:
            return record(target, checkpoint, prepared, recipe, result=result, started=started).path

        path = in_main(accelerator, write)
        folder.remove()
    return read_ticket(path)


def _search_of(
    checkpoint: Checkpoint,
    workload: Workload,
    recipe: Recipe,
    method: Method,
    tell: OnEvent,
    accelerator: Accelerator,
) -> Search | Reconstruction:
    """The search of a recipe: of the whole network, or block by block."""
    given: dict[str, Any] = {
        "module": checkpoint.module, "plan": sites_of(checkpoint, recipe), "workload": workload,
        "budget": recipe.budget(), "method": method, "training": recipe.training,
        "random_init": checkpoint.init is not None, "controls": recipe.evaluation.controls,
        "streamed": checkpoint.streamed, "tell": tell, "tuning": recipe.tuning,
    }  # fmt: skip
    if recipe.objective.name != "reconstruct":
        one = Search(**given)
        return one.permuted(accelerator) if recipe.permute else one
    for key in ("save_scores", "permute", "tuning"):
        if getattr(recipe, key) not in (False, NO_TUNING):
            raise RecipeError(
                f"{key} needs all of the network at once, and the objective reconstruct works on "
                f"one block: leave {key} out"
            )
    residence = Residence.of(checkpoint.module, checkpoint.streamed)
    return Reconstruction(**given, residence=residence)


def _check(target: Target) -> None:
    """Refuse a target that cannot be written, once what a finished search left there is gone."""
    forget_finished(target.parent / target.stem)
    target.check()


def _with_defaults(recipe: Recipe, method: Method, *, random_init: bool) -> Recipe:
    if not isinstance(method, Learned):
        return recipe
    training = with_defaults(
        recipe.training, method, recipe.budget(), random_init=random_init,
        inside=recipe.inside is not None,
    )  # fmt: skip
    by_blocks = recipe.objective.name == "reconstruct"
    if by_blocks and training.steps is None and training.epochs is None:
        training = replace(training, steps=STEPS)
    return replace(recipe, training=training)
