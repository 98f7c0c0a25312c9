"""The names of all recipe keys, read from the sources of the package without importing them.

The dataclasses of a recipe import torch. A wrong key is refused by its name alone, before that.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

# Section of a recipe -> file in the package and class whose fields are its keys.
SECTIONS: Mapping[str, tuple[str, str]] = MappingProxyType({
    "": ("searching/recipes.py", "Recipe"),
    "data": ("data/options.py", "DataOptions"),
    "data.augment": ("data/augment.py", "Augment"),
    "targets": ("sites/sites.py", "Targets"),
    "objective": ("searching/objectives.py", "ObjectiveOptions"),
    "training": ("searching/settings.py", "Training"),
    "tuning": ("searching/tuning.py", "Tuning"),
    "evaluation": ("searching/recipes.py", "EvaluationOptions"),
})  # fmt: skip
# What may have any keys below it.
OPEN = ("method", "model", "densities", "data.augment.timm")


@cache
def recipe_keys() -> tuple[str, ...]:
    """The dotted paths of all keys; empty where the package has no sources to read."""
    names: list[str] = []
    for section, (file, name) in SECTIONS.items():
        prefix = f"{section}." if section else ""
        names += [prefix + field for field in _fields(file, name)]
    return tuple(names)


def is_known(key: str) -> bool:
    """Whether a recipe has a key; True where that cannot be told."""
    known = recipe_keys()
    inside = any(key.startswith(f"{section}.") for section in OPEN)
    return not known or inside or key in known


def _fields(file: str, name: str) -> list[str]:
    """The annotated fields of a class in a source file of the package."""
    path = Path(__file__).parents[1] / file
    source = path.read_text(encoding="utf-8") if path.is_file() else ""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return [
                entry.target.id for entry in node.body
                if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name)
            ]  # fmt: skip
    return []
