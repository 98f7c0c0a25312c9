"""The options that several commands share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from slt_compress.cli.recipe_flags import literal_keys, option
from slt_compress.storage.similar import did_you_mean

# Names for the help, read without importing their modules, which import torch.
METHOD_NAMES = ", ".join(literal_keys("gates/__init__.py", "METHODS"))
FORMAT_NAMES = ", ".join(literal_keys("artifacts/formats/__init__.py", "FORMATS"))

Source = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Hub id, folder, timm:NAME or reference net.")
]
SourceOrResume = Annotated[
    str | None,
    typer.Argument(metavar="SOURCE", help="Hub id, folder, timm:NAME or a reference net."),
]
SaveEvery = Annotated[
    float, typer.Option(min=0.0, help="Seconds between saves of the progress, in OUT.search.")
]
Resume = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Continue the interrupted search in this OUT.search folder."),
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start over, even if OUT.search holds saved progress.")
]
TrackerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        metavar="NAME",
        help="Log to tensorboard, wandb, mlflow, … as accelerate does; may be repeated.",
    ),
]
Newest = Annotated[
    Path | None, typer.Argument(metavar="PATH", help="Default: the newest ticket in tickets/.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Full = Annotated[
    bool, typer.Option("--full", help="Show every layer, parameter and table by itself.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress on stderr.")]
Origin = Annotated[
    str | None, typer.Option(help="Read the origin's weights from this folder, file or hub id.")
]
Dataset = Annotated[str | None, option("--dataset")]
BatchSize = Annotated[int | None, option("--batch-size")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="Name or YAML file of a recipe.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key, such as data.label=y."),
]


def _format(value: str) -> str:
    """Refuse an unknown format."""
    known = (*literal_keys("artifacts/formats/__init__.py", "FORMATS"), "onnx")
    if len(known) > 1 and value not in known:
        raise typer.BadParameter(
            f"unknown format {value!r}; known: {', '.join(known)}{did_you_mean(value, known)}"
        )
    return value


Format = Annotated[
    str,
    typer.Option(
        callback=_format,
        help=f"One of: {FORMAT_NAMES}, onnx; auto takes the smallest per tensor.",
    ),
]
ValuesDtype = Annotated[
    str | None, typer.Option(help="Round kept weights to bf16 or fp16 in the file (lossy).")
]
MaxShardSize = Annotated[
    str | None, typer.Option(help="Split larger weight files, e.g. 2GB; default 5GB.")
]


def _repository(value: str | None) -> str | None:
    """Refuse an invalid repository id, before the work instead of after it."""
    if value is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value):
        raise typer.BadParameter(f"{value!r} is not a repository id; expected ORG/NAME")
    return value


PushToHub = Annotated[
    str | None,
    typer.Option(
        metavar="ORG/NAME",
        callback=_repository,
        help="Upload the folder to this hub repository.",
    ),
]


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
        typer.BadParameter: an entry is not a number.
    """
    try:
        return [float(entry) for entry in listed(text, option)]
    except ValueError:
        raise typer.BadParameter(f"{text!r} has an entry that is not a number",
                                 param_hint=option) from None  # fmt: skip


def resumed(folder: Path, source: str | None, out: Path | None) -> tuple[str, dict[str, Any], Path]:
    """Source, recipe content and ticket path of an interrupted search.

    Raises:
        typer.BadParameter: another source or ticket was given too.
        SltError: the folder does not hold an interrupted search.
    """
    from slt_compress.searching.reserving import interrupted

    recorded, recipe, ticket = interrupted(folder)
    if source not in (None, recorded) or out not in (None, ticket):
        raise typer.BadParameter(
            f"{folder} continues the search of {recorded} for {ticket}: leave out SOURCE and -o",
            param_hint="--resume",
        )
    return recorded, recipe.to_dict(), ticket


def is_main_process() -> bool:
    """Whether this process is the one that prints, among those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"
