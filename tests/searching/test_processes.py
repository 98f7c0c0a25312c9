"""Many processes: one ticket, whose masks are those of one process at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

import slt_compress
from slt_compress.errors import DataError, RecipeError
from slt_compress.searching.accelerators import accelerator_for, shard_of
from slt_compress.searching.recipes import parse_recipe
from slt_compress.searching.settings import Training

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
import slt_compress
from slt_compress.errors import SltError
from slt_compress.searching.recipes import parse_recipe

torch.set_num_threads(1)
source, data, recipe, out = sys.argv[1:]
try:
    ticket = slt_compress.search(source, data, recipe=parse_recipe(json.loads(recipe)), out=out)
    answer = f"path {ticket.path} {ticket.masks.kept}"
except SltError as error:
    answer = f"error {error}"
Path(out + ".answer-" + os.environ["RANK"]).write_text(answer)
"""
Pair = namedtuple("Pair", "left right")


def in_two_processes(source: Any, data: str, recipe: dict[str, Any], out: Path) -> list[str]:
    """What each of two processes said."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
         "--no_python", sys.executable, "-W", "ignore", "-c", SCRIPT,
         str(source), data, json.dumps(recipe), str(out)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answers = [out.with_name(f"{out.name}.answer-{rank}") for rank in range(2)]
    assert all(answer.exists() for answer in answers), done.stderr[-3000:]
    return [answer.read_text() for answer in answers]


RECIPES = {
    "distilled": ("vit", "pictures", {"training": {"steps": 12, "batch_size": 4}}),
    "hidden-states": ("vit", "pictures", {
        "training": {"steps": 8, "batch_size": 3}, "objective": {"hidden_weight": 0.5}}),
    "random": ("lenet-300-100", "digits", {
        "init": "random", "training": {"steps": 40, "batch_size": 16}}),
    "tuned": ("vit", "pictures", {
        "pattern": "head", "target_sparsity": 0.5, "training": {"steps": 8, "batch_size": 4},
        "tuning": {"gains": "unit", "parameters": ["norms", "biases"]}}),
    "language": ("llama", "prose", {"training": {"steps": 8, "batch_size": 4, "clip": 1.0}}),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_two_processes_write_one_ticket_with_the_masks_of_one(
    case: str, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    name, data, recipe = RECIPES[case]
    source, spec = checkpoints.get(name, name), data_sets.get(data, data)
    said = in_two_processes(source, spec, recipe, tmp_path / "two")
    assert said[0] == said[1] == f"path {tmp_path / 'two'} {said[0].split()[-1]}"
    one = slt_compress.search(source, spec, recipe=parse_recipe(recipe), out=tmp_path / "one")
    two = slt_compress.load(tmp_path / "two")
    assert isinstance(two, torch.nn.Module)
    masks = slt_compress.tickets.read_ticket(tmp_path / "two").masks
    differ = sum(int((mask != masks[name]).sum()) for name, mask in one.masks.items())
    assert differ <= 1e-3 * one.masks.total
    assert masks.kept == one.masks.kept
    folders = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert folders == ["one", "two"]


def test_an_error_is_said_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    recipe = {"init": "random", "training": {"steps": 2}}
    said = in_two_processes("lenet-300-100", "digits", recipe, tmp_path / "taken")
    assert said[0] == said[1]
    assert said[0].startswith("error")
    assert "is not empty" in said[0]


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_engines_that_cut_weights_are_refused_by_name(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with (
        pytest.raises(RecipeError, match=f"ACCELERATE_USE_{engine} asks for .* reconstruct"),
        accelerator_for(Training(device="cpu")),
    ):
        pass
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "false")
    with accelerator_for(Training(device="cpu")) as accelerator:
        assert accelerator.num_processes == 1


def test_batches_of_any_kind_are_cut() -> None:
    tensor = torch.arange(5)
    batch = {
        "x": tensor, "mask": torch.ones(1, 7), "texts": ["a", "b", "c", "d", "e"],
        "nested": [Pair(tensor + 5, (tensor * 2, 3.0)), None], "scale": torch.tensor(2.0),
    }  # fmt: skip
    shards = [shard_of(batch, rank, 2) for rank in range(2)]
    assert [weight for _, weight in shards] == [6 / 5, 4 / 5]
    first, second = (shard for shard, _ in shards)
    assert (first["x"].tolist(), second["x"].tolist()) == ([0, 2, 4], [1, 3])
    assert (first["texts"], second["texts"]) == (["a", "c", "e"], ["b", "d"])
    assert isinstance(second["nested"][0], Pair)
    assert second["nested"][0].left.tolist() == [6, 8]
    assert second["nested"][0].right[0].tolist() == [2, 6]
    assert first["mask"].shape == (1, 7)
    assert float(first["scale"]) == 2.0
    assert shard_of(batch, 0, 1) == (batch, 1.0)
    with pytest.raises(DataError, match="a batch of 5 examples cannot be split over 6 processes"):
        shard_of(batch, 0, 6)
