"""The flags that stand for recipe keys: their options, help and errors."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from slt_compress import Recipe, api
from slt_compress.artifacts.formats import EXPORTS
from slt_compress.cli.app import app
from slt_compress.cli.recipe_flags import literal_keys, recipe_flags
from slt_compress.gates import METHODS
from slt_compress.searching.recipe_keys import FLAG_OF, RECIPE_KEYS, RecipeKey, keys_of

NET = ["lenet-300-100", "--init", "random", "--dataset", "digits"]
# A value that differs from the default: one per type, and one of the accepted names where the
# recipe accepts only some.
TYPICAL: dict[type[Any], Any] = {str: "some/text", int: 7, float: 0.75, bool: True}
NAMES = {"--gains": "unit", "--tune": "norms", 
    "--controls": "full", "--recompute": "blocks", "--state": "bf16", "--method": "gumbel",
    "--pattern": "block:2x2", "--scope": "layer", "--objective": "task", "--init": "random",
    "--precision": "bf16",
}  # fmt: skip


def value_of(row: RecipeKey) -> Any:
    return NAMES.get(row.flag, TYPICAL[row.type])


def words_of(row: RecipeKey) -> list[str]:
    """What sets a flag to its value; a switch has no value, and this one needs a pattern."""
    return [row.flag, "--pattern", "2:4"] if row.type is bool else [row.flag, str(value_of(row))]


def value_at(recipe: Recipe, key: str) -> Any:
    content: Any = recipe.to_dict()
    for part in key.split("."):
        content = content[part]
    return content


def invoke(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize("row", RECIPE_KEYS, ids=lambda row: f"{row.flag}-{row.commands[0]}")
def test_a_row_names_a_key_of_the_recipe_and_the_type_of_its_value(row: Any) -> None:
    owner: type[Any] = Recipe
    *sections, name = row.key.split(".")
    for section in sections:
        owner = get_type_hints(owner)[section] if is_dataclass(owner) else owner
    if not is_dataclass(owner):  # `method` is a mapping: its options are those of the method
        assert row.key == "method.name"
        return
    assert name in {entry.name for entry in fields(owner)}


def test_no_command_has_a_flag_twice() -> None:
    for command in ("search", "plan", "compare"):
        flags = [row.flag for row in keys_of(command)]
        assert len(set(flags)) == len(flags)
    assert len(set(FLAG_OF.values())) == len(FLAG_OF)


def test_a_plan_takes_every_flag_that_a_search_takes() -> None:
    assert [row.flag for row in keys_of("plan")] == [row.flag for row in keys_of("search")]


@pytest.mark.parametrize("command", ["search", "plan", "compare"])
def test_the_help_shows_every_row(command: str) -> None:
    text = invoke(command, "--help").replace("- ", "-")
    for row in keys_of(command):
        assert row.flag in text
        assert row.help.split("{")[0].strip() in text


@pytest.mark.parametrize("command", ["search", "plan", "compare"])
def test_the_help_lists_every_method(command: str) -> None:
    listed = ", ".join(METHODS)
    assert listed in invoke(command, "--help").replace("- ", "-")


def test_the_names_in_the_help_are_those_of_the_tables() -> None:
    assert literal_keys("gates/__init__.py", "METHODS") == tuple(METHODS)
    formats = literal_keys("artifacts/formats/__init__.py", "FORMATS")
    assert (*formats, "onnx") == tuple(EXPORTS)
    assert ", ".join(EXPORTS) in invoke("export", "--help").replace("- ", "-")
    assert literal_keys("gates/__init__.py", "NOTHING") == ()
    assert literal_keys("nowhere.py", "METHODS") == ()


@pytest.mark.parametrize("row", keys_of("search"), ids=lambda row: row.flag)
@pytest.mark.parametrize("command", ["search", "plan"])
def test_every_flag_reaches_its_key(
    command: str, row: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    seen: list[Recipe] = []

    def verb(source: object, *, recipe: Recipe, **_: object) -> None:
        seen.append(recipe)
        raise StopError

    monkeypatch.setattr(api, command, verb)
    with pytest.raises(StopError):
        app([command, "net", *words_of(row)], standalone_mode=False)
    assert value_at(seen[0], row.key) in (value_of(row), (value_of(row),))


def test_a_plan_repeats_its_flags_in_the_command() -> None:
    flags = {"--scope": "layer", "--seed": 11, "--device": "cpu", "--lr": 0.25}
    given = [str(word) for pair in flags.items() for word in pair]
    given += ["--pattern", "2:4", "--permute"]
    text = invoke("plan", *NET, *given, "--json")
    assert "--pattern 2:4" in text
    assert "--permute" in text
    assert "--permute True" not in text
    for flag, value in flags.items():
        assert f"{flag} {value}" in text


@pytest.mark.parametrize(
    ("arguments", "option", "reason"),
    [
        (["--steps", "0"], "--steps", "training.steps must be above 0"),
        (["--batch-size", "0", "--seed", "1"], "--batch-size", "training.batch_size"),
        (
            ["--target-sparsity", "1.0"],
            "--target-sparsity",
            "target_sparsity must be in [0, 1), not 1.0",
        ),
        (["--method", "magic", "--lr", "0.1"], "--method", "unknown method 'magic'"),
        (["--pattern", "plaid"], "--pattern", "plaid"),
        (["--scope", "cosmic"], "--scope", "cosmic"),
        (["--objective", "fame"], "--objective", "fame"),
        (["--precision", "int3"], "--precision", "int3"),
        (["--max-time", "-1"], "--max-time", "training.max_time"),
        (["--set", "training.lr=fast", "--seed", "3"], "--set", "training.lr"),
        (["--set", "nope", "--seed", "3"], "--set", "KEY=VALUE"),
        # the flag repairs what --set broke, and another one breaks it again
        (["--set", "training.lr=-1", "--lr", "0.1", "--steps", "0"], "--steps", "training.steps"),
        (["--target-sparsity", "0.9", "--pattern", "2:4"], "--pattern", "2:4"),
    ],
)
@pytest.mark.parametrize("command", ["search", "plan"])
def test_a_usage_error_names_the_option_at_fault(
    command: str, arguments: list[str], option: str, reason: str
) -> None:
    text = invoke(command, "lenet-300-100", *arguments, code=2)
    assert f"Invalid value for {option}:" in text
    assert reason in text


def test_a_pair_of_flags_that_only_go_together_is_accepted() -> None:
    text = invoke("plan", *NET, "--pattern", "2:4", "--target-sparsity", "0.5", "--json")
    assert '"target": 0.5' in text


def test_the_options_stand_where_the_body_has_its_flags() -> None:
    @recipe_flags("compare")
    def body(source: str, flags: Any, last: int = 3) -> None:
        """A body."""

    small = typer.Typer(add_completion=False)
    small.command()(body)
    names = [parameter.name for parameter in typer.main.get_command(small).params]
    assert names[0] == "source"
    assert names[-1] == "last"
    assert len(names) == len(keys_of("compare")) + 2


@pytest.mark.parametrize("recipe", [[], ["--recipe", "mnist-lenet"]])
def test_set_gives_options_of_the_method_that_a_flag_names(recipe: list[str]) -> None:
    method = ["--method", "wanda", "--set", "method.per_row=false"]
    plan = json.loads(invoke("plan", *NET, *recipe, *method, "--json"))
    assert "--method wanda" in plan["command"]
    assert "method.per_row=false" in plan["command"]
    assert "sigma" not in plan["command"]
