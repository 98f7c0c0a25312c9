"""The page of recipes, made from their heads.

python -m tests.recipe_page > docs/recipes.md      # or `make recipe-page`
"""

from __future__ import annotations

from slt_compress.searching.recipes import shipped_recipes

_HEAD = """# Recipes

A recipe is a YAML file with the settings of a search. These come with the package:
`slt-compress recipes` lists them, `slt-compress recipes show NAME` prints one. Flags and
`--set KEY=VALUE` override its keys; a copy of the file with other values is a recipe of your own.
Costs are counted from the settings or measured, as they say; `slt-compress plan` with the same
arguments times two steps on your machine.
"""


def recipe_page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *map(_section, shipped_recipes())])


def _section(name: str) -> str:
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    lines = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]
    head = dict(line.split(": ", 1) for line in lines)
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    story = head["Story"][0].upper() + head["Story"][1:]
    return (
        f"## {name}\n\n{story}\n\n```text\n{head['Run']}\n```\n\n"
        f"* Cost: {head['Cost']}\n* Expected: {head['Expected']}\n\n```yaml\n{body}\n```\n"
    )


if __name__ == "__main__":
    print(recipe_page(), end="")
