"""Recipes: keys, values, precedence, and the files that come with the package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from slt_compress.data import DataOptions
from slt_compress.errors import BudgetError, RecipeError, SltError
from slt_compress.gates import METHODS, Magnitude, Relaxed
from slt_compress.searching.objectives import ObjectiveOptions
from slt_compress.searching.overrides import merged, with_assignment
from slt_compress.searching.recipes import (
    EvaluationOptions,
    Recipe,
    parse_recipe,
    read_recipe,
    shipped_recipes,
)
from slt_compress.searching.settings import Training
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import Targets

FULL = Recipe(
    target_sparsity=0.95,
    method={"name": "relaxed", "sigma": 0.4},
    scope="layer",
    floor=0.2,
    init="kaiming-normal",
    revision="main",
    weights="w.safetensors",
    model={"hidden_size": 32, "nested": {"deep": [1, 2]}},
    dataset="digits",
    data=DataOptions(label="y", text=("a", "b"), limit_train=100),
    targets=Targets(include=("*.mlp.*",), exclude=("re:^head", "fc")),
    objective=ObjectiveOptions(name="distill", temperature=4.0, label_weight=0.25),
    training=Training(steps=7, lr=0.1, seed=3, device="cpu", precision="bf16", max_time=60.0),
    evaluation=EvaluationOptions(limit=50),
    save_scores=True,
)


def test_options_without_a_name_are_of_the_default_method() -> None:
    assert parse_recipe({"method": {"sigma": 0.2}}).method == {"name": "relaxed", "sigma": 0.2}


def test_an_empty_recipe_is_the_default() -> None:
    assert parse_recipe({}) == Recipe()
    assert parse_recipe({"training": {}, "targets": None, "data": {}}) == Recipe()


@pytest.mark.parametrize("recipe", [Recipe(), FULL])
def test_yaml_round_trips(recipe: Recipe) -> None:
    content = yaml.safe_load(recipe.to_yaml())
    assert parse_recipe(content).to_dict() == recipe.to_dict()
    assert parse_recipe(content).to_yaml() == recipe.to_yaml()
    assert list(content) == list(recipe.to_dict())


@pytest.mark.parametrize(
    ("content", "sparsity"),
    [
        ({}, 0.9),
        ({"pattern": "2:4"}, 0.5),
        ({"pattern": "1:4"}, 0.75),
        ({"pattern": "neuron"}, 0.9),
    ],
)
def test_a_pattern_that_fixes_the_density_gives_the_target(
    content: dict[str, Any], sparsity: float
) -> None:
    recipe = parse_recipe(content)
    assert recipe.sparsity == recipe.to_dict()["target_sparsity"] == sparsity
    assert recipe.budget().density == pytest.approx(1 - sparsity)
    assert parse_recipe({**content, "target_sparsity": sparsity}).budget() == recipe.budget()


@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8", "1:16", "5:64", "block:4x4", "neuron"])
def test_an_unquoted_pattern_is_no_number(text: str) -> None:
    assert parse_recipe(yaml.safe_load(f"pattern: {text}")).pattern == text
    assert parse_recipe(with_assignment({}, f"pattern={text}")).pattern == text


def test_values_reach_their_sections() -> None:
    recipe = parse_recipe(
        {
            "target_sparsity": "0.8",
            "method": {"name": "relaxed", "sigma": 0.3},
            "training": {"steps": 5, "lr": "1e-3"},
            "targets": {"include": "a.*, b", "exclude": ["c"]},
            "data": {"text": "question,answer"},
        }
    )
    assert recipe.target_sparsity == 0.8
    assert recipe.method_instance() == Relaxed(sigma=0.3)
    assert recipe.training == Training(steps=5, lr=1e-3)
    assert recipe.targets == Targets(include=("a.*", "b"), exclude=("c",))
    assert recipe.data.text == ("question", "answer")


def test_the_budget_is_the_users_decimal() -> None:
    recipe = parse_recipe({"target_sparsity": 0.9, "scope": "layer", "floor": 0.0})
    assert recipe.budget() == Budget(density=0.1, scope="layer", floor=0.0)
    assert parse_recipe({"target_sparsity": 0.999}).budget().density == 0.001
    assert parse_recipe({"target_sparsity": 0}).budget().density == 1.0


@pytest.mark.parametrize("name", METHODS)
def test_methods_go_by_their_names(name: str) -> None:
    assert parse_recipe({"method": name}).method_instance() == METHODS[name]()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"sparsity": 0.5}, "unknown key sparsity"),
        ({"training": {"step": 5}}, r"unknown key training\.step"),
        ({"data": {"colour": 1}}, r"unknown key data\.colour"),
        ({"method": {"name": "relaxed", "sigmaa": 1}}, r"unknown key method\.sigmaa"),
        ({"method": {"name": "magnitude", "sigma": 1}}, r"unknown key method\.sigma"),
        ({"method": "movement"}, r"method\.name: unknown method 'movement'; known: relaxed, "),
        ({"method": {"name": ["relaxed"]}}, r"method\.name: unknown method \['relaxed'\]"),
        ({"method": 3}, r"method: .*, not 3"),
        ({"training": {"steps": "many"}}, r"training\.steps: .* integer.*, not 'many'"),
        ({"training": {"steps": 0}}, r"training\.steps must be above 0"),
        ({"training": {"precision": "int8"}}, r"training\.precision: .*'no', 'bf16' or 'fp16'"),
        ({"training": 5}, r"training: .*, not 5"),
        ({"training": {"lr": "fast", "steps": "many"}}, r"and 1 more"),
        ({"objective": {"name": "rebuild"}}, r"objective\.name: .*'task'"),
        ({"objective": {"label_smoothing": 2}}, r"objective\.label_smoothing is a share"),
        ({"targets": {"include": 3}}, r"targets\.include: .*, not 3"),
        ({"scope": "row"}, r"scope: .*'global', 'type' or 'layer'"),
        ({"floor": 2.0}, r"a floor of 2\.0"),
        ({"pattern": "rows"}, "unknown pattern 'rows'"),
        ({"pattern": "2:4", "target_sparsity": 0.9}, r"2:4 keeps 2 of 4 .* target of 0\.9"),
        ({"pattern": "4:2"}, "the pattern '4:2' removes nothing"),
        ({"pattern": "2:4", "densities": {"*": 0.5}}, "fixes one density"),
        ({"densities": {"*.fc1.*": 0.0}}, r"a density of 0\.0"),
        ({"densities": {"*.fc1.*": "much"}}, r"densities\.\*\.fc1"),
        ({"normalise": "max"}, r"normalise: .*'none' or 'rms'"),
        ({"training": {"schedule": "step"}}, r"training\.schedule: .*'cubic'"),
        ({"target_sparsity": 1.0}, r"target_sparsity must be in \[0, 1\), not 1\.0"),
        ({"target_sparsity": -0.1}, r"not -0\.1"),
        ({"target_sparsity": float("nan")}, "not nan"),
        ({"method": {"sigma": -1}}, "relaxed needs sigma > 0"),
        ({"evaluation": {"limit": 0}}, r"evaluation\.limit must be above 0, not 0"),
        ({"save_scores": "perhaps"}, r"save_scores: .*, not 'perhaps'"),
        ({1: 2}, "1"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(content: dict[Any, Any], message: str) -> None:
    with pytest.raises((RecipeError, BudgetError), match=message) as caught:
        parse_recipe(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("training.steps=5", {"training": {"steps": 5}}),
        ("data.label=coarse", {"data": {"label": "coarse"}}),
        ("target_sparsity=0.5", {"target_sparsity": 0.5}),
        ("dataset=a:b=c", {"dataset": "a:b=c"}),
        ("dataset=", {"dataset": None}),
        ("targets.include=[a, 'b.*']", {"targets": {"include": ["a", "b.*"]}}),
        ("targets.exclude=*.mlp", {"targets": {"exclude": "*.mlp"}}),
        ("model.deep.er=true", {"model": {"deep": {"er": True}}}),
    ],
)
def test_set_takes_yaml_values_at_dotted_paths(assignment: str, expected: dict[str, Any]) -> None:
    assert with_assignment({}, assignment) == expected


@pytest.mark.parametrize(
    "assignment", ["training.steps", "=5", ".steps=5", "training.=5", "a..b=1"]
)
def test_set_refuses_what_is_no_assignment(assignment: str) -> None:
    with pytest.raises(RecipeError, match="--set takes KEY=VALUE"):
        with_assignment({}, assignment)


def test_set_leaves_the_rest_and_its_argument_alone() -> None:
    content = {"training": {"steps": 5, "lr": 0.1}, "method": "magnitude"}
    found = with_assignment(with_assignment(content, "training.steps=9"), "method.name=random")
    assert found == {"training": {"steps": 9, "lr": 0.1}, "method": {"name": "random"}}
    assert content == {"training": {"steps": 5, "lr": 0.1}, "method": "magnitude"}


def test_what_is_laid_over_goes_first() -> None:
    base = {"method": {"name": "relaxed", "sigma": 0.3}, "training": {"steps": 5, "seed": 1}}
    over = {"training": {"steps": 6}, "method": {"sigma": 0.2}}
    assert merged(base, over) == {
        "method": {"name": "relaxed", "sigma": 0.2}, "training": {"steps": 6, "seed": 1},
    }  # fmt: skip
    assert merged(base, {"method": "magnitude"})["method"] == "magnitude"
    assert merged({"objective": "task"}, {"objective": {"label_smoothing": 0.1}}) == {
        "objective": {"name": "task", "label_smoothing": 0.1}
    }
    assert merged(base, {"training": None})["training"] is None


def test_the_options_of_another_method_do_not_stay() -> None:
    base = {"method": {"name": "relaxed", "sigma": 0.3}}
    for content in (
        merged(base, {"method": {"name": "magnitude"}}),
        with_assignment(base, "method.name=magnitude"),
    ):
        assert parse_recipe(content).method_instance() == Magnitude()
    same = merged(base, {"method": {"name": "relaxed"}})
    assert parse_recipe(same).method_instance() == Relaxed(sigma=0.3)
    implied = merged({"method": {"sigma": 0.3}}, {"method": {"name": "relaxed"}})
    assert parse_recipe(implied).method_instance() == Relaxed(sigma=0.3)


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(replace(FULL, dataset="café").to_yaml(), encoding="utf-8")
    assert parse_recipe(read_recipe(str(path))) == replace(FULL, dataset="café")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"- a\n- b\n", "must hold a YAML mapping, not list"),
        (b"", "must hold a YAML mapping, not NoneType"),
        (b"a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        read_recipe(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_is_refused_and_the_known_ones_listed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'nope': neither a file nor one of .*smoke"):
        read_recipe("nope")
    with pytest.raises(RecipeError, match="no recipe"):
        read_recipe(str(tmp_path))


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_of_the_package_parses_and_round_trips(name: str) -> None:
    recipe = parse_recipe(read_recipe(name))
    assert parse_recipe(yaml.safe_load(recipe.to_yaml())) == recipe
    first = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# "), "the first line says what the recipe is for"


def test_recipes_come_with_the_package() -> None:
    names = list(shipped_recipes())
    assert "smoke" in names
    assert names == sorted(names)
    folder = Path(__file__).parents[2] / "recipes"
    assert {path.name for path in folder.iterdir()} == {f"{name}.yaml" for name in names}


def test_errors_are_of_the_tree() -> None:
    assert issubclass(RecipeError, SltError)
