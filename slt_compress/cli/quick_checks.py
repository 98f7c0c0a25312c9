"""Checks of what was typed, made before anything heavy is imported, and what was meant instead."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import typer

from slt_compress.cli.recipe_flags import Flags, literal_keys
from slt_compress.errors import BudgetError
from slt_compress.searching.recipe_keys import RECIPE_KEYS, RecipeKey
from slt_compress.searching.recipe_names import is_known, recipe_keys
from slt_compress.sites.patterns import parse_pattern
from slt_compress.storage.similar import did_you_mean

_PATTERNS = ("unstructured", "2:4", "1:4", "block:4x4", "neuron", "channel", "head")
_REFERENCE = ("checkpoints/reference.py", "REFERENCE")


def check_typed(source: str | None, assignments: Sequence[str] | None, flags: Flags) -> None:
    """Refuse a wrong flag or key, or a name that looks like one of a reference net.

    What passes may still be refused where the recipe is made.

    Raises:
        typer.BadParameter: it names the option, and what was probably meant.
    """
    for row in RECIPE_KEYS:
        if flags.get(row.key) is not None:
            _check_flag(row, flags[row.key])
    for assignment in assignments or ():
        key, separator, _ = assignment.partition("=")
        if separator and not is_known(key.strip()):
            known = f"unknown key {key}{did_you_mean(key, recipe_keys())}"
            raise typer.BadParameter(known, param_hint="--set")
    if source is not None:
        _check_source(source)


def check_sparsity(value: float, option: str) -> None:
    """Refuse what is no share; a number of per cent is told as the share that it means.

    Raises:
        typer.BadParameter: it is not in [0, 1).
    """
    if 0.0 <= value < 1.0:
        return
    meant = f"; did you mean {value / 100:g}?" if 1.0 < value < 100.0 else ""
    raise typer.BadParameter(
        f"target_sparsity must be in [0, 1), not {value}{meant}", param_hint=option
    )


def one_of(value: str, known: Sequence[str], key: str, option: str) -> None:
    """Refuse a name that is not known.

    Raises:
        typer.BadParameter: it lists the known ones.
    """
    if known and value not in known:
        what = key.removesuffix(".name").rpartition(".")[2]
        raise typer.BadParameter(
            f"{key}: unknown {what} {value!r}; known: {', '.join(known)}"
            f"{did_you_mean(value, known)}",
            param_hint=option,
        )


def _check_flag(row: RecipeKey, value: Any) -> None:
    if row.key == "target_sparsity":
        check_sparsity(value, row.flag)
    elif row.key == "pattern":
        try:
            parse_pattern(value)
        except BudgetError as error:
            hint = did_you_mean(value, _PATTERNS)
            raise typer.BadParameter(f"{error}{hint}", param_hint=row.flag) from None
    known = literal_keys(*row.names_of) if row.names_of else row.choices
    if known:
        one_of(value, known, row.key, row.flag)
    if row.above_zero and not (value > 0 and isfinite(value)):
        raise typer.BadParameter(
            f"{row.key} must be above 0 and finite, not {value}", param_hint=row.flag
        )


def _check_source(source: str) -> None:
    """Refuse a misspelt reference net; any other name may be one of timm or of the hub."""
    known = literal_keys(*_REFERENCE)
    bare = source.lower().replace("_", "-")
    is_name = "/" not in source and ":" not in source and not Path(source).expanduser().exists()
    if not is_name or source in known or not bare.startswith(("lenet", "conv-", "conv2", "conv4")):
        return
    hint = did_you_mean(source, known)
    if hint and "." not in source:
        raise typer.BadParameter(
            f"there is no model {source!r}{hint} reference nets are {', '.join(known)}",
            param_hint="SOURCE",
        )
