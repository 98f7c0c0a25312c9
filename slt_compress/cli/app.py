"""The commands: parse, call one function of the API, print. Heavy imports wait for a command."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from slt_compress import __version__
from slt_compress.cli.apply_command import apply
from slt_compress.cli.audit_command import audit
from slt_compress.cli.bench_command import bench
from slt_compress.cli.doctor_command import doctor
from slt_compress.cli.failing import told_in_one_line
from slt_compress.cli.help_pages import Command, Group
from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import (
    METHOD_NAMES,
    BatchSize,
    Dataset,
    Format,
    Fresh,
    Json,
    MaxShardSize,
    Newest,
    Origin,
    PushToHub,
    Quiet,
    RecipeName,
    Resume,
    SaveEvery,
    Set,
    Source,
    SourceOrResume,
    TrackerNames,
    ValuesDtype,
    is_main_process,
    listed,
    numbers,
    resumed,
)
from slt_compress.cli.own_modules import in_python
from slt_compress.cli.plain_lines import say
from slt_compress.cli.plan_command import plan
from slt_compress.cli.pushing import exported_before, push_if_asked, searched_before
from slt_compress.cli.quick_checks import check_sparsity, check_typed, one_of
from slt_compress.cli.recipe_commands import recipes_app
from slt_compress.cli.recipe_flags import Flags, literal_keys, recipe_flags, resolve, start_of
from slt_compress.cli.report_command import report
from slt_compress.cli.ticket_commands import import_command, tickets_app

app = typer.Typer(
    name="slt-compress",
    help="Make neural networks smaller without touching a weight.",
    cls=Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=Command)(plan)
app.add_typer(recipes_app, name="recipes")
app.add_typer(tickets_app, name="tickets")
app.command("import", cls=Command)(import_command)
app.command(cls=Command)(report)
app.command(cls=Command)(bench)
app.command(cls=Command)(audit)
app.command(cls=Command)(apply)
app.command(cls=Command)(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"slt-compress {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Make neural networks smaller without touching a weight."""


@app.command(cls=Command)
@recipe_flags("search")
def search(
    *,
    source: SourceOrResume = None,
    flags: Flags,
    recipe: RecipeName = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write.")] = None,
    save_every: SaveEvery = 300.0,
    resume: Resume = None,
    fresh: Fresh = False,
    tracker: TrackerNames = None,
    push_to_hub: PushToHub = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search for a ticket: train gates on frozen weights, and keep an exact number of weights.

    The same command continues a search that was interrupted.
    """
    check_typed(source, set_, flags)
    content = start_of(recipe)
    if resume is not None:
        source, content, out = resumed(resume, source, out)
    resolved = resolve(content, set_, flags)
    if source is None:
        raise typer.BadParameter("name a SOURCE, or --resume an interrupted search")
    from slt_compress.cli.search_run import conclude, searched

    ticket = searched_before(out, push_to_hub, source, resolved)
    if ticket is None:
        ticket = searched(
            source, resolved, out, trackers=tracker or [], quiet=quiet, as_json=as_json,
            save_every=save_every, fresh=fresh,
        )  # fmt: skip
    if is_main_process():
        conclude(ticket.path, push_to_hub, quiet=quiet, as_json=as_json)


@app.command(cls=Command)
def export(
    ticket: Newest = None,
    format: Format = "dense",
    shrink: Annotated[
        bool, typer.Option("--shrink", help="Cut out empty rows and columns.")
    ] = False,
    fold: Annotated[
        bool, typer.Option("--fold", help="Fold the orders of --permute into the layers before.")
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write.")] = None,
    origin: Origin = None,
    values_dtype: ValuesDtype = None,
    max_shard_size: MaxShardSize = None,
    push_to_hub: PushToHub = None,
    as_json: Json = False,
) -> None:
    """Write the masked model of a ticket into a folder that can be loaded."""
    from slt_compress import api
    from slt_compress.cli.console import print_artifact
    from slt_compress.evidence.cards import how_to_load

    options = {"format": format, "shrink": shrink, "fold": fold, "out": out,
               "values_dtype": values_dtype, "max_shard_size": max_shard_size}  # fmt: skip
    kind = "shrunk" if shrink else format  # no earlier folded one is pushed in its place
    with in_python("export", **options):
        artifact = exported_before(
            ticket, out, push_to_hub, kind, (values_dtype, max_shard_size, fold or None)
        ) or api.export(
            ticket, format=format, shrink=shrink, fold=fold, out=out, origin=origin,
            values_dtype=values_dtype, max_shard_size=max_shard_size,
        )  # fmt: skip
    facts, path = api.report(artifact.path), artifact.path
    print_artifact(artifact, how_to_load(artifact.format, facts.source, str(path)), facts.warnings)
    push_if_asked(path, push_to_hub)
    if as_json:
        print_json({"path": str(path), "format": artifact.format, "bytes": artifact.nbytes,
                     "dense_bytes": artifact.dense_nbytes}, "artifact")  # fmt: skip
        return
    say(path)


@app.command(cls=Command)
def verify(path: Newest = None, origin: Origin = None, as_json: Json = False) -> None:
    """Prove that a ticket or exported folder is the masked origin, bit for bit."""
    from slt_compress import api

    with in_python("verify"):
        verification = api.verify(path, origin=origin, in_process=True)
    if as_json:
        print_json(verification.to_dict(), "verification")
    else:
        from slt_compress.cli.console import print_verification

        print_verification(verification)
    if not verification.ok:
        raise typer.Exit(1)


@app.command(cls=Command)
def evaluate(
    path: Newest = None,
    dataset: Dataset = None,
    origin: Origin = None,
    batch_size: BatchSize = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Measure a ticket or exported folder on a data set; default: that of the search."""
    from slt_compress import api

    recipe = api.search_recipe(path, dataset)
    resolved = resolve(recipe.to_dict(), set_, {"training.batch_size": batch_size})
    with in_python("evaluate"):
        measured = api.evaluate(path, origin=origin, recipe=resolved)
    if as_json:
        print_json(measured, "evaluation")
        return
    from slt_compress.cli.console import print_metrics

    print_metrics(measured)


@app.command(cls=Command)
@recipe_flags("compare")
def compare(
    source: Source,
    *,
    methods: Annotated[
        str, typer.Option(help=f"Separated by commas, any of: {METHOD_NAMES}.")
    ] = "relaxed,edge-popup,magnitude",
    target_sparsity: Annotated[
        str | None, typer.Option(help="Shares to remove, separated by commas; several give a plot.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    flags: Flags,
    recipe: RecipeName = None,
    set_: Set = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder to write; finished rows are kept."),
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search with several methods, with equal steps, seeds and data, and compare the results."""
    names = listed(methods, "--methods")
    for name in names:
        one_of(name, literal_keys("gates/__init__.py", "METHODS"), "method.name", "--methods")
    check_typed(source, set_, flags)
    targets = [] if target_sparsity is None else numbers(target_sparsity, "--target-sparsity")
    for target in targets:
        check_sparsity(target, "--target-sparsity")
    content = start_of(recipe)
    resolved = resolve(content, set_, flags)
    targets = targets or [resolved.sparsity]
    for name in names:
        for target in targets:
            resolve(content, set_, {**flags, "method.name": name, "target_sparsity": target})
    from slt_compress import api
    from slt_compress.cli.console import print_comparison
    from slt_compress.cli.watching import watched_rows

    with watched_rows(quiet=quiet, as_json=as_json) as (tell, on_row):
        comparison = api.compare(
            source, methods=names, sparsities=targets, seeds=seeds, out=out, recipe=resolved,
            progress=tell, on_row=on_row,
        )  # fmt: skip
    if as_json:
        print_json(comparison.to_dict(), "comparison")
    else:
        print_comparison(comparison)
    if comparison.failed:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    # The process ends anyway: a last garbage collection would take up to a second.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    # Threads that spin while they wait multiply the run time on shared cores. OpenMP reads this
    # when torch is imported, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:] if arguments is None else arguments
    with told_in_one_line(as_json="--json" in words):
        code = app(args=arguments, prog_name="slt-compress", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
