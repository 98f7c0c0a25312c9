"""The options that stand for recipe keys, and the recipe that a command line adds up to."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slt_compress.searching.recipe_keys import FLAG_OF, RECIPE_KEYS, RecipeKey, keys_of

if TYPE_CHECKING:
    from slt_compress.searching.recipes import Recipe

# What a command is given for its recipe flags: recipe key -> value, None where the flag is absent.
Flags = Mapping[str, Any]


def recipe_flags(command: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `flags` of a command by one option per recipe key that it takes."""
    rows = {_parameter_name(row): row for row in keys_of(command)}

    def decorate(body: Callable[..., None]) -> Callable[..., None]:
        @wraps(body)
        def run(**given: Any) -> None:
            flags = {row.key: given.pop(name) for name, row in rows.items()}
            body(flags=flags, **given)

        parameters = list(_parameters(body, rows))
        # typer reads the options from here; `wraps` would send it to the body
        del run.__dict__["__wrapped__"]
        run.__dict__["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {entry.name: entry.annotation for entry in parameters}
        return run

    return decorate


def _parameters(
    body: Callable[..., None], rows: Mapping[str, RecipeKey]
) -> Iterator[inspect.Parameter]:
    kind = inspect.Parameter.KEYWORD_ONLY
    for parameter in inspect.signature(body, eval_str=True).parameters.values():
        if parameter.name != "flags":
            yield parameter.replace(kind=kind)
            continue
        for name, row in rows.items():
            yield inspect.Parameter(
                name, kind, default=None, annotation=Annotated[row.type | None, _option(row)]
            )


def _parameter_name(row: RecipeKey) -> str:
    return row.flag.removeprefix("--").replace("-", "_")


def option(flag: str) -> Any:
    """The typer option of the first row with this flag."""
    return _option(next(row for row in RECIPE_KEYS if row.flag == flag))


def _option(row: RecipeKey) -> Any:
    names = ", ".join(literal_keys(*row.names_of)) if row.names_of else ""
    return typer.Option(
        row.flag, metavar=row.metavar, help=row.help.format(names=names),
        rich_help_panel=row.panel,
    )  # fmt: skip


def literal_keys(file: str, table: str) -> tuple[str, ...]:
    """The keys of a literal table, read from a source file of the package without importing it.

    `--help` lists names whose modules import torch. Reading them here keeps `--help` fast, and
    keeps the row in the table the only place that names a method or format. Empty where the
    package was installed without its sources.
    """
    path = Path(__file__).parents[1] / file
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == table:
            literal = next(part for part in ast.walk(node) if isinstance(part, ast.Dict))
            keys = (key.value for key in literal.keys if isinstance(key, ast.Constant))
            return tuple(key for key in keys if isinstance(key, str))
    return ()


def start_of(recipe: str | None) -> dict[str, Any]:
    """The content that a command starts from: that of a recipe, which must be valid on its own.

    Raises:
        RecipeError: there is no such recipe, or it is invalid.
    """
    from slt_compress.searching.recipes import parse_recipe, read_recipe

    content = {} if recipe is None else read_recipe(recipe)
    parse_recipe(content)
    return content


@dataclass(frozen=True, slots=True, kw_only=True)
class _Override:
    """One option of the command line, and the content of the recipe once it is applied."""

    option: str
    key: str
    content: Mapping[str, Any]


def resolve(content: Mapping[str, Any], assignments: list[str] | None, flags: Flags) -> Recipe:
    """The recipe `content`, overridden by each `--set` and then by each flag.

    Raises:
        typer.BadParameter: an override is invalid; it names the option.
    """
    from slt_compress.errors import BudgetError, DataError, RecipeError
    from slt_compress.searching.recipes import parse_recipe

    if flags.get("training.steps") is not None and flags.get("training.epochs") is not None:
        raise typer.BadParameter("give --steps or --epochs, not both")
    overrides = list(_overrides(content, assignments or [], flags))
    try:
        return parse_recipe(overrides[-1].content if overrides else content)
    except (RecipeError, BudgetError, DataError) as error:
        option = _at_fault(overrides, str(error))
        raise typer.BadParameter(str(error), param_hint=option) from None


def _overrides(
    content: Mapping[str, Any], assignments: list[str], flags: Flags
) -> Iterator[_Override]:
    from slt_compress.errors import RecipeError
    from slt_compress.searching.overrides import with_assignment

    name = flags.get("method.name")
    if name is not None:  # in front, as --set may give options of this method
        content = _with_flag(content, "method.name", name)
        yield _Override(option=FLAG_OF["method.name"], key="method.name", content=content)
    for assignment in assignments:
        try:
            content = with_assignment(content, assignment)
        except RecipeError as error:
            raise typer.BadParameter(str(error), param_hint="--set") from None
        yield _Override(option="--set", key=assignment.partition("=")[0], content=content)
    for key, value in flags.items():
        if value is not None:
            content = _with_flag(content, key, value)
            yield _Override(option=FLAG_OF[key], key=key, content=content)


def _with_flag(content: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The content overridden by one flag; steps replace epochs, and the other way round."""
    from slt_compress.searching.overrides import with_key

    other = {"training.steps": "training.epochs", "training.epochs": "training.steps"}.get(key)
    content = with_key(content, key, value)
    return content if other is None else with_key(content, other, None)


def _at_fault(overrides: list[_Override], message: str) -> str | None:
    """The option whose key the message names, else the one after which the recipe stays invalid."""
    named = [entry.option for entry in overrides if message.startswith(entry.key)]
    if named:
        return named[-1]
    option = None
    for entry in reversed(overrides):
        if _is_valid(entry.content):
            break
        option = entry.option
    return option


def _is_valid(content: Mapping[str, Any]) -> bool:
    from slt_compress.errors import SltError
    from slt_compress.searching.recipes import parse_recipe

    try:
        parse_recipe(content)
    except SltError:
        return False
    return True
