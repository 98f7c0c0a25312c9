"""A method of the user's own: an instance goes wherever a name does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import slt_compress
from slt_compress import Recipe, Training
from slt_compress.errors import RecipeError
from slt_compress.gates.one_shot import Random
from slt_compress.gates.relaxed import Relaxed

SHORT = Training(steps=4, batch_size=16, selections=1)
RECIPE = Recipe(init="random", training=SHORT, dataset="digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mine(Relaxed):
    """The Gaussian gate under another name, with an option more."""

    colour: str = "blue"
    name: ClassVar[str] = "mine"


class Largest:
    """A one-shot method that is no dataclass."""

    name = "largest"
    calibrated = False

    def score(self, weight: Tensor, key: int, inputs: object = None) -> Tensor:
        """The weights themselves."""
        return weight.float().abs() + 1e-3 * Random().score(weight, key)


class Half:
    """Something that is no method."""

    name = "half"

    def score(self, weight: Tensor, key: int, inputs: object = None) -> Tensor:
        return weight


@pytest.mark.parametrize("method", [Mine(sigma=0.4), Largest()], ids=["learned", "one-shot"])
def test_every_verb_takes_an_instance(method: Any, tmp_path: Path) -> None:
    ticket = slt_compress.search(
        "lenet-300-100", "digits", method=method, recipe=RECIPE, out=tmp_path / "ticket"
    )
    section: Mapping[str, Any] = json.loads((ticket.path / "ticket.json").read_text())["recipe"]
    assert section["method"]["name"] == method.name
    assert section["method"].get("colour") == getattr(method, "colour", None)
    assert slt_compress.verify(ticket.path, in_process=True).ok
    artifact = slt_compress.export(ticket.path, format="auto", out=tmp_path / "auto")
    assert isinstance(slt_compress.load(artifact.path), torch.nn.Module)
    measured = slt_compress.evaluate(ticket.path)
    assert measured["metrics"]["accuracy"] == ticket.metrics["hard"]["accuracy"]
    assert slt_compress.report(artifact.path).recipe["method"]["name"] == method.name


@pytest.mark.parametrize("method", [Mine(), Largest()], ids=["learned", "one-shot"])
def test_a_plan_takes_an_instance(method: Any) -> None:
    plan = slt_compress.plan("lenet-300-100", "digits", method=method, recipe=RECIPE)
    assert plan.sparsity["gated"] == 266_200
    assert ("adam" in plan.memory["no"]) == isinstance(method, Mine)
    assert (plan.forecast.seconds_per_step is not None) == isinstance(method, Mine)


def test_a_comparison_takes_instances_beside_names(tmp_path: Path) -> None:
    comparison = slt_compress.compare(
        "lenet-300-100", methods=["magnitude", Mine(sigma=0.4), Largest()], seeds=1,
        recipe=RECIPE, out=tmp_path / "compare",
    )  # fmt: skip
    assert [row.method for row in comparison.rows] == ["magnitude", "mine", "largest"]
    assert not comparison.failed


def test_what_lacks_a_member_is_named_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Half is not a method: to be a OneShot .* calibrated"):
        slt_compress.search("lenet-300-100", "digits", method=Half(), recipe=RECIPE,  # type: ignore[arg-type]
                            out=tmp_path / "ticket")  # fmt: skip
    assert not (tmp_path / "ticket").exists()


def test_options_that_json_cannot_hold_are_refused_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the method mine must fit into JSON"):
        slt_compress.search("lenet-300-100", "digits", method=Mine(colour=object()),  # type: ignore[arg-type]
                            recipe=RECIPE, out=tmp_path / "ticket")  # fmt: skip
