"""The options that several commands share, and the recipe that a command line comes to."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from slt_compress.searching.recipes import Recipe

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Hub id, folder, timm:NAME or a reference net.")
]
Newest = Annotated[
    Path | None, typer.Argument(metavar="PATH", help="Default: the newest ticket in tickets/.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Origin = Annotated[
    str | None, typer.Option(help="Read the origin's weights from this folder, file or hub id.")
]
TargetSparsity = Annotated[
    float | None, typer.Option(help="Share of the gated weights to remove, in [0, 1).")
]
MethodName = Annotated[
    str | None,
    typer.Option(
        "--method", help="relaxed, hard-concrete, gumbel, edge-popup, magnitude or random."
    ),
]
Pattern = Annotated[
    str | None, typer.Option(help="unstructured, N:M (2:4), block:RxC, neuron, channel or head.")
]
Inside = Annotated[
    str | None, typer.Option(metavar="TICKET", help="What this ticket removed stays removed.")
]
Dataset = Annotated[
    str | None, typer.Option(help="digits, a hub id (name or name:config), a file or a folder.")
]
Init = Annotated[
    str | None,
    typer.Option(
        help="Search a random network: random (signed-constant), kaiming-normal, "
        "kaiming-uniform, uniform:A or default (the library's own)."
    ),
]
Weights = Annotated[str | None, typer.Option(help="A .safetensors file to load.")]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub id.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training split.")]
BatchSize = Annotated[int | None, typer.Option(help="Examples in a batch.")]
Lr = Annotated[float | None, typer.Option(help="Learning rate of the scores.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …")]


def _format(value: str) -> str:
    """Refuse a name that no format has."""
    from slt_compress.artifacts.formats import EXPORTS

    if value not in EXPORTS:
        raise typer.BadParameter(f"unknown format {value!r}; known: {', '.join(EXPORTS)}")
    return value


Format = Annotated[
    str,
    typer.Option(
        callback=_format,
        help="dense, sparse-csr, bitmask, nm, coded, auto (the smallest), mask or onnx.",
    ),
]
ValuesDtype = Annotated[
    str | None, typer.Option(help="Round kept weights to bf16 or fp16 in the file (lossy).")
]
MaxShardSize = Annotated[
    str | None, typer.Option(help="Split larger weight files, e.g. 2GB; default 5GB.")
]


def _repository(value: str | None) -> str | None:
    """Refuse an id that no repository can have, before the work and not after it."""
    if value is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value):
        raise typer.BadParameter(f"{value!r} is no id of a repository; say ORG/NAME")
    return value


PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="ORG/NAME",
        callback=_repository,
        help="Upload the folder to this hub repository.",
    ),
]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="Name or YAML file of a recipe.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. data.label=y."),
]


def start_of(recipe: str | None) -> dict[str, Any]:
    """The content that a command starts from: that of a recipe, which has to be a whole one.

    Raises:
        RecipeError: there is no such recipe, or something is wrong in it.
    """
    from slt_compress.searching.recipes import parse_recipe, read_recipe

    content = {} if recipe is None else read_recipe(recipe)
    parse_recipe(content)
    return content


def resolve(
    content: dict[str, Any], assignments: list[str] | None, flags: dict[str, Any]
) -> Recipe:
    """Recipe < --set < flag. What is wrong on the command line itself is a usage error."""
    from slt_compress.errors import BudgetError, DataError, RecipeError
    from slt_compress.searching.recipe_keys import merged, set_key
    from slt_compress.searching.recipes import parse_recipe

    if flags.get("training.steps") is not None and flags.get("training.epochs") is not None:
        raise typer.BadParameter("give --steps or --epochs, not both")
    try:
        for assignment in assignments or []:
            content = set_key(content, assignment)
        for key, value in flags.items():
            if value is None:
                continue
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            content = merged(content, nested)
            if key in ("training.steps", "training.epochs"):
                other = "epochs" if key == "training.steps" else "steps"
                content = merged(content, {"training": {other: None}})
        return parse_recipe(content)
    except (RecipeError, BudgetError, DataError) as error:
        raise typer.BadParameter(str(error)) from None


def listed(text: str, option: str) -> list[str]:
    """The entries of a comma-separated option.

    Raises:
        typer.BadParameter: an entry is empty.
    """
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise typer.BadParameter(f"{text!r} has an empty entry", param_hint=option)
    return entries


def numbers(text: str, option: str) -> list[float]:
    """The numbers of a comma-separated option.

    Raises:
        typer.BadParameter: an entry is none.
    """
    try:
        return [float(entry) for entry in listed(text, option)]
    except ValueError:
        raise typer.BadParameter(f"{text!r} has an entry that is no number",
                                 param_hint=option) from None  # fmt: skip


def push_if_asked(folder: Path, repo: str | None) -> None:
    """Upload what a command wrote, where that was asked for; its address goes to stderr.

    Raises:
        SltError: it could not be pushed.
    """
    if repo is not None:
        from slt_compress.exporting.pushing import push

        print(f"pushed to {push(folder, repo)}", file=sys.stderr)
