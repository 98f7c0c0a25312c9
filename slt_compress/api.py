"""The public verbs. Each is a short composition of the rooms below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.remembering import leaves_unchanged
from slt_compress.artifacts import Artifact, is_artifact
from slt_compress.checkpoints.recorded import local_folder
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.evidence.checks import Verification
from slt_compress.evidence.reporting import Report, make_report
from slt_compress.evidence.verifying import verify_apart, verify_folder
from slt_compress.exporting.kinds import export_as
from slt_compress.gates import Method
from slt_compress.runtime.opening import open_path
from slt_compress.runtime.sparse import run_on
from slt_compress.searching.comparing import Comparison, OnRow, compare_all, planned
from slt_compress.searching.events import OnEvent
from slt_compress.searching.forecasting import plan_search
from slt_compress.searching.measuring import measure_path
from slt_compress.searching.objectives import ObjectiveName
from slt_compress.searching.planning import Plan
from slt_compress.searching.recipes import Recipe, recorded_recipe, with_arguments
from slt_compress.searching.recording import model_name, target_of
from slt_compress.searching.resuming import SAVE_EVERY
from slt_compress.searching.running import run
from slt_compress.searching.search import OnStep
from slt_compress.searching.settings import Training
from slt_compress.sites.budget import Budget
from slt_compress.storage.files import read_json
from slt_compress.tickets import Ticket, free_path, newest, read_ticket

TICKETS, EXPORTS, COMPARISONS = Path("tickets"), Path("exports"), Path("compare")


def search(
    source: str | Path | nn.Module,
    data: str | Iterable[Any] | None = None,
    *,
    budget: Budget | None = None,
    method: Method | None = None,
    objective: ObjectiveName | None = None,
    training: Training | None = None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    on_step: OnStep | None = None,
    progress: bool | OnEvent = False,
    save_every: float = SAVE_EVERY,
    fresh: bool = False,
) -> Ticket:
    """Search for a ticket and write it; an interrupted search of the same kind goes on.

    Args:
        source: a hub id, folder, timm name or reference net; or a module of your own, which the
            search leaves bit-identical.
        data: a data set specification; for a module of your own, a re-iterable of batches.
        budget: how many weights are kept.
        method: an instance, such as `slt_compress.gates.Relaxed(sigma=0.4)`.
        objective: `auto`, `task`, `distill`, `lm` or `reconstruct`; your own module has `loss_fn`.
        training: how the scores are trained.
        loss_fn: for a module of your own; `loss_fn(module, batch)` returns a scalar.
        out: folder of the ticket; default `tickets/<model>-<method>-<sparsity>[-n]`.
        recipe: all other settings; the arguments above override it.
        on_step: called after each step.
        progress: True shows a bar; a function hears each of `slt_compress.searching.events`.
        save_every: seconds between saves of the progress, in `<out>.search`.
        fresh: start over instead of continuing what is saved there.

    Raises:
        SltError: the source, data, budget or recipe cannot be used, `<out>.search` holds another
            search, or the search diverged.
    """
    recipe = with_arguments(recipe or Recipe(), budget, method, objective, training)
    method = method or recipe.method_instance()
    if isinstance(data, str):
        recipe = replace(recipe, dataset=data)
    recipe.budget()  # an impossible one is refused before anything is opened
    target = target_of(source, recipe, out, TICKETS)
    return run(source, data, loss_fn, recipe, method, target, on_step=on_step,
               progress=progress, save_every=save_every, fresh=fresh)  # fmt: skip


@leaves_unchanged
def plan(
    source: str | Path | nn.Module,
    data: str | None = None,
    *,
    budget: Budget | None = None,
    method: Method | None = None,
    objective: ObjectiveName | None = None,
    training: Training | None = None,
    recipe: Recipe | None = None,
) -> Plan:
    """What a search with the same arguments would gate, need and produce.

    Weights are loaded only to time two steps, and only if they and the data set are local.

    Raises:
        SltError: the source, budget or recipe cannot be used, or nothing would be gated.
    """
    recipe = with_arguments(recipe or Recipe(), budget, method, objective, training)
    recipe = recipe if data is None else replace(recipe, dataset=data)
    return plan_search(source, recipe, method or recipe.method_instance())


def compare(
    source: str | Path,
    data: str | None = None,
    *,
    methods: Sequence[str | Method],
    sparsities: Sequence[float] = (),
    seeds: int = 3,
    out: str | Path | None = None,
    recipe: Recipe | None = None,
    on_step: OnStep | None = None,
    progress: bool | OnEvent = False,
    on_row: OnRow | None = None,
) -> Comparison:
    """Search with every method, sparsity and seed, with equal steps, and compare the results.

    Args:
        source, data, recipe, on_step, progress: as for `search`.
        methods: names or instances; a name uses the recipe's options if it is the recipe's.
        sparsities: default: the sparsity of the recipe.
        seeds: number of seeds, counted up from the recipe's `training.seed`.
        out: folder of the tickets and of `compare.json`, whose finished rows are not searched
            again; default `compare/<model>[-n]`.
        on_row: called after each search.

    Raises:
        SltError: the source, data or recipe cannot be used. A method that fails becomes a row.
    """
    recipe = recipe or Recipe()
    recipe = recipe if data is None else replace(recipe, dataset=data)
    recipes = planned(recipe, methods, sparsities or (recipe.sparsity,), seeds)
    folder = Path(out) if out is not None else free_path(COMPARISONS, model_name(source))

    instances = {method.name: method for method in methods if not isinstance(method, str)}

    def one(recipe: Recipe, path: Path) -> Ticket:
        method = instances.get(recipe.method["name"])
        return search(source, method=method, recipe=recipe, out=path, on_step=on_step,
                      progress=progress)  # fmt: skip

    return compare_all(str(source), recipes, folder, one, on_row)


def report(path: str | Path | None = None) -> Report:
    """The report of a ticket or of an exported folder; default: the newest ticket.

    Raises:
        SltError: there is no such folder, or it is damaged.
    """
    folder = Path(path) if path is not None else newest(TICKETS)
    if is_artifact(folder):
        file = folder / "report.json"
        return Report.from_dict(read_json(file, ArtifactError), file, ArtifactError)
    return make_report(read_ticket(folder))


@leaves_unchanged
def export(
    ticket: str | Path | None = None,
    *,
    format: str = "dense",
    shrink: bool = False,
    fold: bool = False,
    out: str | Path | None = None,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    inputs: tuple[Tensor, ...] | None = None,
    values_dtype: str | None = None,
    max_shard_size: str | int | None = None,
) -> Artifact:
    """Export the masked model of a ticket (default: the newest) into a new folder.

    Args:
        format: a name in `slt_compress.artifacts.formats.EXPORTS`.
        shrink: cut empty rows and columns out of a dense export; only `load` opens the result.
        fold: put the orders of `--permute` into a dense export where the graph allows, so that its
            masks are N:M along neighbouring inputs; `load` puts the weights back.
        out: default `exports/<ticket>-<format>`; a folder that is not empty is refused.
        origin, model: as for `load`.
        inputs: example inputs for a module of your own.
        values_dtype: `bf16` or `fp16` rounds the kept weights in the file, which is lossy.
        max_shard_size: largest size of a weight file, in bytes or as text such as `2GB`.

    Raises:
        SltError: the ticket, its origin or the target cannot be used, or nothing can be shrunk.
    """
    folder = Path(ticket) if ticket is not None else newest(TICKETS)
    if is_artifact(folder):
        raise TicketError(f"{folder} is already an exported folder; export takes a ticket")
    kind = "shrunk" if shrink else "folded" if fold else format
    target = Path(out or EXPORTS / f"{folder.absolute().name}-{kind}")
    return export_as(
        folder, target, format=format, shrink=shrink, fold=fold, origin=origin, model=model,
        inputs=inputs, values_dtype=values_dtype, max_shard_size=max_shard_size,
    )  # fmt: skip


@leaves_unchanged
def load(
    path: str | Path,
    *,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    runtime: str = "dense",
    device: str | torch.device = "cpu",
    revision: str | None = None,
    dtype: str | None = None,
) -> nn.Module:
    """Load a ticket or an exported folder as a module in eval mode.

    Args:
        path: the folder, or the id of a hub repository.
        origin: read the ticket's weights from here instead of from the recorded source.
        model: the module that a ticket of kind `module` was searched on; it is copied.
        runtime: `dense`, `sparse` (CPU kernels for kept weights) or `auto` (sparse kernels only
            where they are faster).
        device: device of the module.
        revision: branch, tag or commit of a hub repository.
        dtype: what the sparse kernels multiply in: `fp32` (the default), or `bf16` or `int8`, which
            are faster and less exact; the attribute `slt_error` of the module says by how much.

    Raises:
        SltError: the folder or its origin cannot be used.
    """
    opened = open_path(local_folder(path, revision), origin=origin, model=model)
    return run_on(opened, runtime, device, dtype)


@leaves_unchanged
def verify(
    path: str | Path | None = None,
    *,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    in_process: bool = False,
) -> Verification:
    """Prove in a clean process that a folder (default: the newest ticket) is the masked origin.

    Args:
        path: a ticket or an exported folder.
        origin: read the origin's weights from here instead of from the recorded source.
        model: the module that a ticket of kind `module` was searched on; implies `in_process`.
        in_process: check in this process instead of a new one.

    Raises:
        SltError: the folder does not exist, or its origin cannot be reached.
    """
    folder = Path(path) if path is not None else newest(TICKETS)
    if in_process or model is not None:
        return verify_folder(folder, origin=origin, model=model)
    return verify_apart(folder, origin=origin)


def evaluate(
    path: str | Path | None = None,
    data: str | None = None,
    *,
    origin: str | Path | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Metrics of a ticket or exported folder on a data set: `{metrics, examples}`.

    Args:
        path: default: the newest ticket.
        data: a data set specification; default: that of the search.
        origin: read the origin's weights from here instead of from the recorded source.
        recipe: its `dataset`, `data`, `evaluation` and batch size are used; default: those of the
            search, without its `data` section if `data` is another data set.

    If the labels of the data are not those of the model, `agreement` and `kl` compare with the
    dense origin, which must then be available.

    Raises:
        SltError: the folder, its origin or the data cannot be used.
    """
    folder = Path(path) if path is not None else newest(TICKETS)
    return measure_path(folder, recipe or search_recipe(folder, data), data, origin=origin)


def search_recipe(path: str | Path | None = None, data: str | None = None) -> Recipe:
    """The recipe of the search that made a ticket or exported folder.

    With `data` the recipe is for that data set; the `data` section of another one is left out.

    Raises:
        SltError: the folder is damaged.
    """
    return recorded_recipe(report(path).recipe, data)
