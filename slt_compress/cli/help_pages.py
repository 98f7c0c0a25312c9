"""Help: commands and options in groups, each command with an example."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from typer.core import TyperCommand, TyperGroup

# The commands in groups, with a line for each that fits beside it in 80 columns.
COMMANDS: Mapping[str, Mapping[str, str]] = MappingProxyType({
    "Find a mask": {
        "plan": "Show what a search would gate, need and produce.",
        "search": "Train gates on frozen weights, and keep an exact number.",
        "compare": "Search with several methods, sparsities and seeds.",
        "recipes": "List or print the recipes that come with the package.",
        "import": "Make a ticket from a checkpoint that was pruned elsewhere.",
    },
    "See what it does": {
        "report": "Show what a ticket or exported folder achieved.",
        "evaluate": "Measure it on a data set.",
        "bench": "Time it on this CPU against the dense origin.",
        "tickets": "List, compare and combine tickets.",
    },
    "Use it": {
        "export": "Write the masked model into a folder that can be loaded.",
        "apply": "Put a mask again on a model whose weights have moved.",
    },
    "Prove it": {
        "verify": "Prove that a folder is the masked origin, bit for bit.",
        "audit": "Tell what a changed model still holds of a ticket.",
    },
    "Look after it": {
        "doctor": "Show versions, devices, threads, cache, disk and extras.",
    },
})  # fmt: skip

EXAMPLES: Mapping[str, str] = MappingProxyType({
    "": "search google/vit-base-patch16-224 --target-sparsity 0.9",
    "plan": "plan google/vit-base-patch16-224 --pattern 2:4",
    "search": "search lenet-300-100 --init random --dataset digits",
    "compare": "compare lenet-300-100 --init random --dataset digits --seeds 2",
    "recipes": "recipes",
    "recipes show": "recipes show smoke",
    "import": "import pruned-model -o tickets/pruned",
    "report": "report tickets/a tickets/b --html report.html",
    "evaluate": "evaluate tickets/a --dataset uoft-cs/cifar10",
    "bench": "bench tickets/a --batch 1,8",
    "tickets": "tickets list",
    "tickets list": "tickets list",
    "tickets diff": "tickets diff tickets/a tickets/b",
    "tickets merge": "tickets merge tickets/a tickets/b --op and -o tickets/both",
    "export": "export tickets/a --format auto",
    "apply": "apply tickets/a fine-tuned-model -o masked-again",
    "verify": "verify exports/a-auto",
    "audit": "audit quantised-model --ticket tickets/a --strict",
    "doctor": "doctor",
})  # fmt: skip

_OTHERS = "Options"


class Command(TyperCommand):
    """A command whose options are in groups and whose help ends with an example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options of each group below its title, the group without one last."""
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example."""
        _write_example(ctx, formatter)


class Group(TyperGroup):
    """A group of commands, in groups, whose help ends with an example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, and then the commands."""
        _write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands of each group below its title."""
        if ctx.parent is not None:
            super().format_commands(ctx, formatter)
            return
        for title, lines in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(lines.items()))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example."""
        _write_example(ctx, formatter)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    groups: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            is_argument = parameter.param_type_name == "argument"
            panel = getattr(parameter, "rich_help_panel", None) or _OTHERS
            groups.setdefault("Arguments" if is_argument else panel, []).append(record)
    last = groups.pop(_OTHERS, None)
    for title, records in (*groups.items(), *([(_OTHERS, last)] if last else [])):
        with formatter.section(title):
            formatter.write_dl(records)


def _write_example(ctx: Any, formatter: Any) -> None:
    names, place = [], ctx
    while place.parent is not None:
        names.append(place.info_name)
        place = place.parent
    example = EXAMPLES.get(" ".join(reversed(names)))
    if example is not None:
        with formatter.section("Example"):
            formatter.write(f"  $ slt-compress {example}\n")
