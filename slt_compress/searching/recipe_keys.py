"""The recipe keys that have a command-line flag, in one literal table.

`search`, `compare` and `plan` make their options and help from it, and the command that a plan
prints is made from it too. Every other key is set by `--set KEY=VALUE`. This module imports nothing
heavy, because `--help` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeKey:
    """A key of a recipe and the flag that sets it.

    Attributes:
        key: dotted path of the key in a recipe.
        flag: the flag, such as `--lr`.
        type: what the flag's value is parsed as.
        help: one line for `--help`; `{names}` stands for the names in the table `names_of`.
        commands: the commands that take the flag.
        metavar: how `--help` shows the value; None shows the type.
        names_of: file in the package and name of the literal table whose keys are the values.
        choices: all values, where they are few.
        panel: the group that `--help` shows the flag in.
        above_zero: whether a number has to be above 0 and finite.
    """

    key: str
    flag: str
    type: type[str] | type[int] | type[float] | type[bool]
    help: str
    commands: tuple[str, ...] = ("search", "plan", "compare")
    metavar: str | None = None
    names_of: tuple[str, str] | None = None
    choices: tuple[str, ...] = ()
    panel: str = "How it is trained"
    above_zero: bool = False


_MASK, _FROM = "The mask", "The model and its data"
_ONE = ("search", "plan")  # the commands about a single search

# In the order in which `--help` lists them.
RECIPE_KEYS: tuple[RecipeKey, ...] = (
    RecipeKey(
        key="target_sparsity", panel=_MASK, flag="--target-sparsity", type=float, commands=_ONE,
        help="Share of the gated weights to remove, in [0, 1).",
    ),
    RecipeKey(
        key="method.name", panel=_MASK, flag="--method", type=str, commands=_ONE,
        help="One of: {names}.", names_of=("gates/__init__.py", "METHODS"),
    ),
    RecipeKey(
        key="pattern", panel=_MASK, flag="--pattern", type=str, commands=_ONE,
        help="unstructured, N:M (such as 2:4), block:RxC, neuron, channel or head.",
    ),
    RecipeKey(
        key="permute", panel=_MASK, flag="--permute", type=bool, commands=_ONE,
        help="Form the groups of N:M of inputs that suit each other, not of neighbours.",
    ),
    RecipeKey(
        key="scope", panel=_MASK, flag="--scope", type=str, commands=_ONE,
        help="Which layers compete: global (all), type (similar ones) or layer (each on its own).",
        choices=("global", "type", "layer"),
    ),
    RecipeKey(
        key="inside", panel=_MASK, flag="--inside", type=str, commands=_ONE, metavar="TICKET",
        help="Search only the weights that this ticket kept.",
    ),
    RecipeKey(
        key="tuning.gains", flag="--gains", type=str, metavar="site|unit",
        help="unit: train a real gain for each kept neuron, channel or head.",
    ),
    RecipeKey(
        key="tuning.parameters", flag="--tune", type=str, metavar="KINDS",
        help="Train norms, biases or both (norms,biases) with the gates.",
    ),
    RecipeKey(
        key="objective.name", flag="--objective", type=str, commands=_ONE,
        help="auto, task, distill, lm or reconstruct (block by block).",
        choices=("auto", "task", "distill", "lm", "reconstruct"),
    ),
    RecipeKey(
        key="training.seed", flag="--seed", type=int, commands=("compare",),
        help="The first seed.",
    ),
    RecipeKey(
        key="dataset", panel=_FROM, flag="--dataset", type=str,
        help="digits, a hub id (name or name:config), a file or a folder.",
    ),
    RecipeKey(
        key="init", panel=_FROM, flag="--init", type=str,
        help="Search a random network: random (signed-constant), kaiming-normal, "
        "kaiming-uniform, uniform:A or default (the library's own).",
    ),
    RecipeKey(
        key="weights", panel=_FROM, flag="--weights", type=str,
        help="Load the weights from this .safetensors file.",
    ),
    RecipeKey(
        key="revision", panel=_FROM, flag="--revision", type=str,
        help="Commit, tag or branch of a hub id.",
    ),
    RecipeKey(
        key="training.steps", flag="--steps", type=int, above_zero=True,
        help="Number of optimizer steps.",
    ),
    RecipeKey(
        key="training.epochs", flag="--epochs", type=float, above_zero=True,
        help="Number of passes over the training split.",
    ),
    RecipeKey(
        key="training.batch_size", flag="--batch-size", type=int, above_zero=True,
        help="Number of examples in a batch.",
    ),
    RecipeKey(
        key="training.lr", flag="--lr", type=float, above_zero=True,
        help="Learning rate of the scores.",
    ),
    RecipeKey(
        key="training.seed", flag="--seed", type=int, commands=_ONE,
        help="Seed of everything random.",
    ),
    RecipeKey(key="training.device", flag="--device", type=str, help="cpu, cuda, …"),
    RecipeKey(
        key="training.precision", flag="--precision", type=str, commands=_ONE,
        help="no, bf16 or fp16.", choices=("no", "bf16", "fp16"),
    ),
    RecipeKey(
        key="training.accumulate", flag="--accumulate", type=int, commands=_ONE, above_zero=True,
        help="Put a batch through the network in so many parts, one after another.",
    ),
    RecipeKey(
        key="training.recompute", flag="--recompute", type=str, commands=_ONE,
        help="none, or blocks: they run again in the backward pass, which saves memory.",
        choices=("none", "blocks"),
    ),
    RecipeKey(
        key="training.state", flag="--state", type=str, commands=_ONE,
        help="fp32, or bf16: moments and running mean in half the memory.",
        choices=("fp32", "bf16"),
    ),
    RecipeKey(
        key="training.max_time", flag="--max-time", type=float, commands=_ONE, above_zero=True,
        help="Longest time to search, in seconds.",
    ),
    RecipeKey(
        key="evaluation.controls", panel=_FROM, flag="--controls", type=str,
        help="none, fast (as many test examples as give 1 percentage point) or full.",
        choices=("none", "fast", "full"),
    ),
)  # fmt: skip

# The flag of each key, for the command that a plan prints.
FLAG_OF: Mapping[str, str] = MappingProxyType({row.key: row.flag for row in RECIPE_KEYS})


def keys_of(command: str) -> tuple[RecipeKey, ...]:
    """The rows of the table that a command takes, in order."""
    return tuple(row for row in RECIPE_KEYS if command in row.commands)
