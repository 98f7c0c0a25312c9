"""Keys of a recipe: set one, merge two recipes, and the flags that stand for keys."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from slt_compress.errors import RecipeError
from slt_compress.searching.recipes import Recipe


def set_key(content: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """`content` with one `KEY=VALUE` applied; KEY is a dotted path, VALUE is YAML.

    Raises:
        RecipeError: there is no `=`, or a key on the path holds no mapping.
    """
    key, separator, text = assignment.partition("=")
    if not separator or not all(key.split(".")):
        raise RecipeError(f"--set takes KEY=VALUE, such as data.label=coarse, not {assignment!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return merged(content, _nested(key.split("."), value))


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over` laid over it, section by section."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if key in ("method", "objective") and isinstance(below, str):
            below = {"name": below}
        if key == "method" and _another_method(below, value):
            below = None  # its options are not those of the method that goes first
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merged(below, value)
        result[key] = value
    return result


def _another_method(below: Any, value: Any) -> bool:
    if not isinstance(below, Mapping) or not isinstance(value, Mapping) or "name" not in value:
        return False
    return bool(below.get("name", "relaxed") != value["name"])


def _nested(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nested(path[1:], value)}


# Keys of a recipe that have a flag of their own; every other one goes through --set.
_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "target_sparsity": "--target-sparsity",
        "method.name": "--method",
        "pattern": "--pattern",
        "scope": "--scope",
        "inside": "--inside",
        "objective.name": "--objective",
        "dataset": "--dataset",
        "init": "--init",
        "weights": "--weights",
        "revision": "--revision",
        "training.steps": "--steps",
        "training.epochs": "--epochs",
        "training.batch_size": "--batch-size",
        "training.lr": "--lr",
        "training.seed": "--seed",
        "training.device": "--device",
        "training.precision": "--precision",
        "training.max_time": "--max-time",
    }
)


def search_command(source: str | Path, recipe: Recipe) -> str:
    """What to type in a shell to search `source` by `recipe`: what is default is left out."""
    words = ["slt-compress", "search", str(source)]
    default = dict(_flat(Recipe().to_dict()))
    given = dict(_flat(recipe.to_dict()))
    if given.get("training.steps") is not None:  # goes before the epochs
        given.pop("training.epochs")
    spoken = {"target_sparsity", *(["method.name"] if len(recipe.method) > 1 else [])}
    for key, value in given.items():
        if (key in spoken and value is not None) or value != default.get(key):
            flag = _FLAGS.get(key)
            words += [flag, str(value)] if flag else ["--set", f"{key}={_yaml(value)}"]
    return shlex.join(words)


def _flat(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; a mapping whose own keys have dots stays whole."""
    for key, value in content.items():
        if not isinstance(value, Mapping) or any("." in str(below) for below in value):
            yield f"{path}{key}", value
        else:
            yield from _flat(value, f"{path}{key}.")


def _yaml(value: Any) -> str:
    """A value as `--set` reads it: YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
