"""Tuning: the real numbers that a search trains beside its masks, where it is asked to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

from torch import nn

from slt_compress.anatomy.parameters import Parameter, walk_parameters
from slt_compress.anatomy.roles import unsuitable
from slt_compress.errors import RecipeError
from slt_compress.gates import Learned, Method
from slt_compress.gates.gating import GAIN
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import SitePlan

KINDS = ("norms", "biases")
_PATTERNS = ("neuron", "channel", "head")
# Learning rates of gains of units, and of parameters.
_GAINS_LR, _PARAMETERS_LR = 5e-2, 3e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The `tuning` section of a recipe: by default nothing but scores is trained.

    Attributes:
        gains: `site` has the gain of a random init alone; `unit` trains a real gain for every
            neuron, channel or head, by which the kept ones are multiplied.
        parameters: `norms` (scales and shifts of normalisation layers) and `biases` are trained
            with the gates.
        lr: learning rate of both; None takes what suits each.
    """

    gains: Literal["site", "unit"] = "site"
    parameters: tuple[str, ...] = ()
    lr: float | None = None

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.parameters if kind not in KINDS]
        if unknown:
            raise RecipeError(
                f"tuning.parameters: {unknown[0]!r} cannot be tuned; known: {', '.join(KINDS)}"
            )
        if self.lr is not None and not 0 < self.lr < inf:
            raise RecipeError(f"tuning.lr must be above 0 and finite, not {self.lr}")

    def check(self, method: Method, budget: Budget) -> None:
        """Refuse what cannot be trained beside these gates.

        Raises:
            RecipeError: the method trains nothing, or the pattern has no units to give gains to.
        """
        if self == NO_TUNING:
            return
        if not isinstance(method, Learned):
            raise RecipeError(
                f"the method {method.name} trains nothing, so it cannot train gains or parameters "
                "either: leave out --gains and --tune, or take a learned method"
            )
        if self.gains == "unit" and budget.shape.kind not in _PATTERNS:
            raise RecipeError(
                f"--gains unit gives a gain to each kept unit of the patterns "
                f"{', '.join(_PATTERNS)}, and the pattern is {budget.pattern}"
            )
        if self.gains == "unit" and method.signed:
            raise RecipeError("a gain has a sign of its own: leave out --gains unit or signed")

    def names(self, module: nn.Module, plan: SitePlan) -> tuple[str, ...]:
        """The parameters to train, in the order of the module; no site is among them.

        Raises:
            RecipeError: the module has none of a kind that is asked for.
        """
        named: dict[str, None] = {}
        for kind in self.parameters:
            own = [name for name in _of_kind(kind, module) if name not in plan.layouts]
            if not own:
                raise RecipeError(f"--tune {kind}: this model has no {kind}")
            named.update(dict.fromkeys(own))
        return tuple(name for name, _ in module.named_parameters() if name in named)

    def count(self, module: nn.Module, plan: SitePlan) -> int:
        """How many numbers of the module are trained."""
        sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
        return sum(sizes[name] for name in self.names(module, plan))

    def rate(self, name: str) -> float:
        """The learning rate of something that is trained beside the scores (`is_extra`)."""
        if self.lr is not None:
            return self.lr
        return _GAINS_LR if name.startswith(GAIN) else _PARAMETERS_LR


NO_TUNING = Tuning()


def _of_kind(kind: str, module: nn.Module) -> Iterator[str]:
    """Names of the plain floating-point parameters of a kind; not what a weight is made of."""
    for entry in walk_parameters(module):
        plain = entry.source_of is None and isinstance(entry.tensor, nn.Parameter)
        if plain and entry.tensor.is_floating_point() and _kind_of(entry) == kind:
            yield entry.names[0]


def _kind_of(entry: Parameter) -> str | None:
    if unsuitable(entry) == "normalisation":
        return "norms"
    if entry.tensor.dim() == 1 and (entry.param.startswith("bias") or entry.param.endswith("bias")):
        return "biases"
    return None
