"""Recipe files: those that come with the package, and those of a user. This imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from slt_compress.errors import RecipeError
from slt_compress.storage.regular import read_regular_text

_NESTED = re.compile(r"""(?:[\[{]\s*(?:"[^"\n]*"\s*:)?\s*){50}|(?:-[ \t]+){50}""")
_RECIPE_LIMIT = 1 << 20  # bytes, far more than any recipe


def read_recipe(name: str) -> dict[str, Any]:
    """The content of a recipe: that of a file, or of a recipe that comes with the package.

    Raises:
        RecipeError: no such recipe exists, or it is not a YAML mapping.
    """
    path = Path(name)
    if not path.is_file():
        shipped = shipped_recipes()
        if name not in shipped:
            raise RecipeError(
                f"no recipe {name!r}: neither a file nor one of {', '.join(shipped) or 'none'}"
            )
        path = shipped[name]
    try:
        text = read_regular_text(path, _RECIPE_LIMIT)
        if _NESTED.search(text):  # a parser would take seconds to find out
            raise RecursionError
        content = yaml.safe_load(text)
    except RecursionError:
        raise RecipeError(f"{path} is nested too deep for a recipe") from None
    except (yaml.YAMLError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path} is not YAML: {reason}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a YAML mapping, not {type(content).__name__}")
    return content


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package: name -> file, sorted by name."""
    package = Path(__file__).parents[1]
    folders = (package / "_recipes", package.parent / "recipes")  # in the wheel, in the checkout
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}
