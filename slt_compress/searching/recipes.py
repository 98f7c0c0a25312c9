"""Recipes: all settings of a search, as YAML. Errors name the path of the bad key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any

import yaml

from slt_compress.data import DataOptions
from slt_compress.errors import RecipeError
from slt_compress.gates import METHODS, Method, checked
from slt_compress.searching.objectives import ObjectiveName, ObjectiveOptions
from slt_compress.searching.recipe_files import read_recipe as read_recipe
from slt_compress.searching.recipe_files import shipped_recipes as shipped_recipes
from slt_compress.searching.schema import _build, _plain
from slt_compress.searching.settings import ControlsMode, Training
from slt_compress.searching.tuning import NO_TUNING, Tuning
from slt_compress.sites.budget import Budget, Normalise, Scope
from slt_compress.sites.patterns import parse_pattern
from slt_compress.sites.sites import Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """The `evaluation` section.

    Attributes:
        limit: at most this many test examples.
        controls: `none` measures no controls, `fast` measures them on the first test examples that
            are enough for one percentage point, `full` on all.
    """

    limit: int | None = None
    controls: ControlsMode = "fast"

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit <= 0:
            raise RecipeError(f"evaluation.limit must be above 0, not {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All settings of a search except its source.

    Attributes:
        target_sparsity: share of the gated weights to remove, in [0, 1); None uses the share
            that the pattern fixes, else 0.9.
        method: name of the method and its options.
        pattern, scope, floor, densities, normalise: settings of the budget.
        init: scheme of a random init (`random`, `default`, `kaiming-normal`, …); None: pretrained.
        revision, weights: revision and weight file of the source.
        model: configuration keys or timm arguments that override those of the architecture.
        dataset: specification of the data set; None uses the default of the task.
        permute: let the groups of N:M be formed of inputs in another order, one for each site.
        inside: folder of a ticket; only the weights that it kept are searched.
        save_scores: store the scores in the ticket.
        tuning: what is trained beside the scores; it is recorded where anything is.
    """

    target_sparsity: float | None = None
    method: Mapping[str, Any] = field(default_factory=lambda: {"name": "relaxed"})
    pattern: str = "unstructured"
    scope: Scope = "global"
    floor: float = 0.1
    densities: Mapping[str, float] = field(default_factory=dict)
    normalise: Normalise = "none"
    init: str | None = None
    revision: str | None = None
    weights: str | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    data: DataOptions = field(default_factory=DataOptions)
    targets: Targets = field(default_factory=Targets)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    training: Training = field(default_factory=Training)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    permute: bool = False
    inside: str | None = None
    save_scores: bool = False
    tuning: Tuning = field(default_factory=Tuning)

    @property
    def sparsity(self) -> float:
        """`target_sparsity`, or its default.

        Raises:
            BudgetError: the pattern is unknown.
        """
        if self.target_sparsity is not None:
            return self.target_sparsity
        fixed = parse_pattern(self.pattern).density
        return 0.9 if fixed is None else round(1.0 - fixed, 12)

    def budget(self) -> Budget:
        """The budget, in densities."""
        return Budget(
            # 1 - 0.9 is 0.0999…98; rounding gives the decimal that the user meant
            density=round(1.0 - self.sparsity, 12), scope=self.scope, pattern=self.pattern,
            floor=self.floor, densities=self.densities, normalise=self.normalise,
        )  # fmt: skip

    def method_instance(self) -> Method:
        """An instance of the method, with its options.

        Raises:
            RecipeError: the name or an option is unknown.
        """
        options = {key: value for key, value in self.method.items() if key != "name"}
        name = self.method.get("name", "relaxed")
        if not isinstance(name, str) or name not in METHODS:
            raise RecipeError(f"method.name: unknown method {name!r}; known: {', '.join(METHODS)}")
        method: Method = _build(METHODS[name], options, "method")
        return method

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings with every key resolved, as YAML and tickets store them.

        `tuning` is left out where nothing is tuned: tickets without it stay what they were.
        """
        content = asdict(replace(self, target_sparsity=self.sparsity))
        if self.tuning == NO_TUNING:
            del content["tuning"]
        return content

    def to_yaml(self) -> str:
        """The recipe as YAML, every key resolved."""
        return yaml.safe_dump(_plain(self.to_dict()), sort_keys=False, allow_unicode=True)


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain mappings; missing keys take their defaults.

    Raises:
        RecipeError: a key is unknown or a value is wrong; the message names its path.
    """
    method = content.get("method")
    if isinstance(method, str):
        content = {**content, "method": {"name": method}}
    elif isinstance(method, Mapping):
        content = {**content, "method": {"name": "relaxed", **method}}
    if isinstance(content.get("objective"), str):
        content = {**content, "objective": {"name": content["objective"]}}
    if type(content.get("pattern")) is int:  # YAML 1.1 reads an unquoted 2:4 in base 60
        content = {**content, "pattern": "{}:{}".format(*divmod(content["pattern"], 60))}
    recipe: Recipe = _build(Recipe, content, "")
    if not 0.0 <= recipe.sparsity < 1.0:
        raise RecipeError(f"target_sparsity must be in [0, 1), not {recipe.sparsity}")
    if recipe.permute and recipe.budget().shape.kind != "n:m":
        raise RecipeError(
            f"permute orders the inputs of N:M groups, and the pattern is {recipe.pattern!r}: add "
            "--pattern 2:4, or leave out --permute"
        )
    recipe.budget()
    recipe.method_instance()
    return recipe


def with_arguments(
    recipe: Recipe,
    budget: Budget | None,
    method: Method | None,
    objective: ObjectiveName | None,
    training: Training | None,
) -> Recipe:
    """The recipe, overridden by the instances that are given."""
    if budget is not None:
        recipe = replace(
            recipe, target_sparsity=round(1.0 - budget.density, 12), pattern=budget.pattern,
            scope=budget.scope, floor=budget.floor, densities=budget.densities,
            normalise=budget.normalise,
        )  # fmt: skip
    if method is not None:
        recipe = replace(recipe, method=method_section(method))
    if objective is not None:
        recipe = replace(recipe, objective=replace(recipe.objective, name=objective))
    return recipe if training is None else replace(recipe, training=training)


def recorded_recipe(content: Mapping[str, Any], data: str | None = None) -> Recipe:
    """The recipe that a ticket or report records; with `data`, for that data set.

    The `data` section of another data set is left out. So is a user's own method, because no
    name stands for it.

    Raises:
        RecipeError: a key is unknown or a value is wrong.
    """
    left_out = set[str]()
    if data is not None and data != content.get("dataset"):
        left_out.add("data")
    method = content.get("method")
    if isinstance(method, Mapping) and method.get("name") not in METHODS:
        left_out.add("method")
    kept = {key: value for key, value in content.items() if key not in left_out}
    return parse_recipe(kept if data is None else {**kept, "dataset": data})


def method_section(method: str | Method) -> dict[str, Any]:
    """The `method` section for an instance, or for a name with its default options.

    Raises:
        RecipeError: the instance is not a method, or has options that JSON cannot hold.
    """
    if isinstance(method, str):
        return {"name": method}
    # a method of the user's own need not be a dataclass
    fields: dict[str, Any] = asdict(method) if is_dataclass(method) else {}
    section = {"name": checked(method).name, **fields}
    try:
        json.dumps(section)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"the options of the method {method.name} must fit into JSON, for the ticket: {error}"
        ) from None
    return section
