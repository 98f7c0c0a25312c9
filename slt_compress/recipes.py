"""Recipes: everything a search is told, as YAML, with errors that name the path of a bad key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from slt_compress.budget import Budget, Normalise, Scope
from slt_compress.data import DataOptions
from slt_compress.errors import RecipeError
from slt_compress.methods import METHODS, Method
from slt_compress.objectives import ObjectiveName, ObjectiveOptions
from slt_compress.patterns import parse_pattern
from slt_compress.settings import Training
from slt_compress.sites import Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """The `evaluation` section: `limit` caps the test examples."""

    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit <= 0:
            raise RecipeError(f"evaluation.limit must be above 0, not {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything a search is told beside its source.

    Attributes:
        target_sparsity: share of the gated weights to remove, in [0, 1); None takes what the
            pattern fixes, else 0.9.
        method: name of the method and its options.
        pattern, scope, floor, densities, normalise: of the budget.
        init: scheme of a random init (`random`, `default`, `kaiming-normal`, …); None: pretrained.
        revision, weights: of the source.
        model: free configuration or timm arguments for the architecture.
        dataset: specification of the data set; None takes a default by task.
        inside: folder of a ticket; what it removed stays removed.
        save_scores: keep the scores in the ticket.
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
    inside: str | None = None
    save_scores: bool = False

    @property
    def sparsity(self) -> float:
        """`target_sparsity`, or what it is by default.

        Raises:
            BudgetError: there is no such pattern.
        """
        if self.target_sparsity is not None:
            return self.target_sparsity
        fixed = parse_pattern(self.pattern).density
        return 0.9 if fixed is None else round(1.0 - fixed, 12)

    def budget(self) -> Budget:
        """The budget, in densities."""
        return Budget(
            # 1 - 0.9 is 0.0999…98: the user's decimal is what was meant
            density=round(1.0 - self.sparsity, 12), scope=self.scope, pattern=self.pattern,
            floor=self.floor, densities=self.densities, normalise=self.normalise,
        )  # fmt: skip

    def method_instance(self) -> Method:
        """The method with its options.

        Raises:
            RecipeError: an unknown name or option.
        """
        options = {key: value for key, value in self.method.items() if key != "name"}
        name = self.method.get("name", "relaxed")
        if not isinstance(name, str) or name not in METHODS:
            raise RecipeError(f"method.name: unknown method {name!r}; known: {', '.join(METHODS)}")
        method: Method = _build(METHODS[name], options, "method")
        return method

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings with every key resolved, as YAML and the ticket hold them."""
        return asdict(replace(self, target_sparsity=self.sparsity))

    def to_yaml(self) -> str:
        """The recipe as YAML, every key resolved."""
        return yaml.safe_dump(_plain(self.to_dict()), sort_keys=False, allow_unicode=True)


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """A recipe from plain mappings; missing keys take their defaults.

    Raises:
        RecipeError: an unknown key or a wrong value, named by its path.
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
        raise RecipeError(f"target_sparsity is {recipe.sparsity}; it lies in [0, 1)")
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
    """The recipe with instances laid over its sections; None leaves a section as it is."""
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


def method_section(method: str | Method) -> dict[str, Any]:
    """The `method` section for a name, which takes the default options, or an instance."""
    if isinstance(method, str):
        return {"name": method}
    return {"name": method.name, **asdict(method)}  # type: ignore[call-overload]


def read_recipe(name: str) -> dict[str, Any]:
    """The content of a recipe: a file, or the name of one that comes with the package.

    Raises:
        RecipeError: there is none, or it is not a YAML mapping.
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
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path} is not YAML: {reason}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds no mapping of keys")
    return content


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package, sorted by name."""
    package = Path(__file__).parent
    folders = (package / "_recipes", package.parent / "recipes")  # in the wheel, in the checkout
    folder = next((folder for folder in folders if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


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


def _build(cls: type[Any], content: Mapping[str, Any], path: str) -> Any:
    """An instance of a dataclass from plain mappings, checked by pydantic."""
    try:
        checked = _schema(cls).model_validate(dict(content))
    except ValidationError as error:
        raise RecipeError(_sentence(error, path)) from None
    return _instance(cls, checked)


def _schema(cls: type[Any]) -> type[BaseModel]:
    """A pydantic model with the fields of a dataclass; unknown keys are refused."""
    hints = get_type_hints(cls)
    definitions: dict[str, Any] = {}
    for entry in fields(cls):
        hint = hints[entry.name]
        if is_dataclass(hint) and isinstance(hint, type):
            hint = _schema(hint)
        elif hint == tuple[str, ...]:
            hint = Annotated[tuple[str, ...], BeforeValidator(_comma_separated)]
        default = ... if entry.default is MISSING else entry.default
        if entry.default_factory is not MISSING:
            definitions[entry.name] = (hint | None, None)
        else:
            definitions[entry.name] = (hint, default)
    config = ConfigDict(extra="forbid", protected_namespaces=())
    schema: type[BaseModel] = create_model(cls.__name__, __config__=config, **definitions)
    return schema


def _instance(cls: type[Any], checked: BaseModel) -> Any:
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name in checked.model_fields_set:
        value = getattr(checked, name)
        if value is None and is_dataclass(hints[name]):
            continue
        values[name] = _instance(hints[name], value) if isinstance(value, BaseModel) else value
    return cls(**values)


def _comma_separated(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _sentence(error: ValidationError, path: str) -> str:
    """The first problem, with its path; how many more there are."""
    problems = error.errors()
    first = problems[0]
    where = ".".join([path] * bool(path) + [str(part) for part in first["loc"]])
    if first["type"] == "extra_forbidden":
        text = f"unknown key {where}"
    else:
        text = f"{where}: {first['msg'].lower()}, not {first['input']!r}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def _plain(value: Any) -> Any:
    """Tuples as lists and mappings as dicts, for YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
