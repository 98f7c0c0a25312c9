"""Every recipe of the package: its head is complete, and two steps of it run on a pico model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pico
import pytest
import transformers

import slt_compress
from slt_compress.searching.recipe_keys import keys_of
from slt_compress.searching.recipes import parse_recipe, read_recipe, shipped_recipes

HEAD = ("Story", "Run", "Cost", "Expected")
TINY_SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16,
             "depths": [1, 1], "num_heads": [1, 1]}  # fmt: skip
# By recipe: a small model of its kind, a data set of its kind, and keys to make it small.
STORIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-sst2": ("bert", "reviews", {}),
    "cifar-random": ("resnet20-cifar", "pictures", {}),
    "cifar-resnet": ("resnet", "pictures", {}),
    "distill": ("vit", "pictures", {}),
    "llm-2of4": ("llama", "prose", {}),
    "llm-50": ("gpt2", "prose", {}),
    "llm-blocks": ("llama", "prose", {}),
    "llm-distill": ("llama", "prose", {}),
    "minilm-search": ("encoder", "reviews", {}),
    "mnist-lenet": ("lenet-300-100", "digits", {}),
    "mnist-neurons": ("lenet-300-100", "digits", {}),
    "resnet-distill": ("resnet", "pictures", {}),
    "resnet50-random": ("timm:test_resnet", "pictures", {}),
    "smoke": ("lenet-300-100", "digits", {}),
    "swin-random": ("timm:swin_tiny_patch4_window7_224", "pictures", {"model": TINY_SWIN}),
    "vit-base-90": ("vit", "pictures", {}),
    "vit-base-random": ("timm:test_vit", "pictures", {}),
    "vit-digits": ("timm:test_vit", "digits", {}),
    "wide-resnet50-random": ("timm:test_resnet", "pictures", {}),
}


def head_of(name: str) -> dict[str, str]:
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("#")]
    return dict(line.removeprefix("# ").split(": ", 1) for line in lines)  # type: ignore[misc]


def test_there_is_a_recipe_for_every_story() -> None:
    assert STORIES.keys() == shipped_recipes().keys()
    assert len(STORIES) >= 12


@pytest.mark.parametrize("name", STORIES)
def test_the_head_says_what_how_and_at_what_cost(name: str) -> None:
    head, content = head_of(name), read_recipe(name)
    assert tuple(head) == HEAD
    assert all(len(line) > 30 or key == "Cost" for key, line in head.items())
    program, verb, source, *flags = shlex.split(head["Run"])
    assert (program, verb) == ("slt-compress", "search")
    assert source
    assert flags[-2:] == ["--recipe", name]
    known = {row.flag for row in keys_of("search")}
    assert {flag for flag in flags[:-2] if flag.startswith("--")} <= known
    # what a recipe leaves open, its command says
    assert "dataset" in content or "--dataset" in flags
    assert ("FILE" in head["Run"]) == (name == "cifar-resnet")


@pytest.mark.parametrize("name", STORIES)
def test_two_steps_run(
    name: str, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    source, data, changes = STORIES[name]
    content = read_recipe(name)
    training = {**content["training"], "steps": 2, "epochs": None, "batch_size": 4}
    recipe = parse_recipe({
        **content, **changes, "dataset": data_sets.get(data, data), "training": training,
        "data": {**content.get("data", {}), "max_length": 12 if data == "prose" else None},
        "evaluation": {"limit": 4},
    })  # fmt: skip
    if source == "encoder":
        config = transformers.BertConfig(**pico.SMALL, **pico.TEXT, intermediate_size=32)
        transformers.BertModel(config).save_pretrained(tmp_path / "encoder")
        checkpoints = {**checkpoints, source: pico.save_tokenizer(tmp_path / "encoder")}
    ticket = slt_compress.search(
        str(checkpoints.get(source, source)), recipe=recipe, out=tmp_path / "ticket"
    )
    wanted = 1 - (recipe.target_sparsity or 0.5)
    assert ticket.masks.kept / ticket.masks.total == pytest.approx(wanted, abs=0.05)
    report = slt_compress.report(ticket.path)
    assert report.metrics["hard"]


def test_costs_are_those_of_the_settings() -> None:
    """Steps in a head are the epochs of its recipe over the training split, to a few per cent."""
    rows = {"ylecun/mnist": 58_000, "uoft-cs/cifar10": 48_000, "stanfordnlp/sst2": 65_349}
    for name in STORIES:
        recipe, stated = parse_recipe(read_recipe(name)), head_of(name)["Cost"]
        given = re.match(r"([\d,]+) steps", stated)
        if given is None:
            continue
        steps = recipe.training.steps or round(
            (recipe.training.epochs or 0) * rows[recipe.dataset or ""] / recipe.training.batch_size
        )
        assert int(given[1].replace(",", "")) == pytest.approx(steps, rel=0.05), name
