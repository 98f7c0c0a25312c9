"""The commands that show the recipes that come with the package."""

from __future__ import annotations

from typing import Annotated

import typer

from slt_compress.cli.help_pages import Command, Group
from slt_compress.cli.plain_lines import say, write
from slt_compress.storage.similar import did_you_mean

recipes_app = typer.Typer(cls=Group, help="List or print the recipes that come with the package.")


@recipes_app.callback(invoke_without_command=True)
def _list_recipes(context: typer.Context) -> None:
    """List the recipes that come with the package."""
    if context.invoked_subcommand is None:
        from slt_compress.searching.recipe_files import shipped_recipes

        for name, path in shipped_recipes().items():
            first = path.read_text(encoding="utf-8").splitlines()[0]
            say(f"{name:24} {first.lstrip('# ')}")


@recipes_app.command("show", cls=Command)
def _show_recipe(
    name: Annotated[str, typer.Argument(help="Name of a recipe.")],
) -> None:
    """Print one recipe."""
    from slt_compress.searching.recipe_files import shipped_recipes

    known = shipped_recipes()
    if name not in known:
        raise typer.BadParameter(
            f"no recipe {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}"
        )
    write(known[name].read_text(encoding="utf-8"))
