"""Searches block by block: what they give, what they hold in memory, and how they go on."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import slt_compress
from slt_compress.anatomy.blocks import block_names, capture_outputs
from slt_compress.anatomy.residence import Residence
from slt_compress.api import report
from slt_compress.checkpoints import open_checkpoint
from slt_compress.checkpoints.hollow import is_placeholder, open_hollow
from slt_compress.errors import RecipeError
from slt_compress.evidence.losses import relative_error
from slt_compress.searching.recipes import parse_recipe
from slt_compress.searching.state import Step
from slt_compress.sites.allocation import even_counts, part_budget, ranked_counts
from slt_compress.sites.budget import Budget, binarize
from slt_compress.sites.sites import Site

SHORT = {"steps": 3, "batch_size": 4}
SEARCHED = {
    "llama": ("llama", "prose", {}),
    "random": ("llama", "prose", {"init": "random"}),
    "swaps": ("llama", "prose", {"method": "swaps"}),
    "wanda": ("llama", "prose", {"method": "wanda"}),
    "prior": ("llama", "prose", {"method": {"name": "relaxed", "prior": "wanda"}}),
    "signed": ("llama", "prose", {"method": {"name": "relaxed", "signed": True}}),
    "groups": ("llama", "prose", {"pattern": "2:4"}),
    "heads": ("vit", "pictures", {"pattern": "head", "target_sparsity": 0.5}),
    "layers": ("vit", "pictures", {"scope": "layer"}),
    "convolutions": (
        "resnet",
        "pictures",
        {"training": {"steps": 1, "batch_size": 2}, "evaluation": {"controls": "none"}},
    ),
    "experts": ("mixtral", "prose", {}),
}
HOLLOW = ["llama", "gpt2", "vit", "bert", "resnet"]


class Killed(BaseException):
    """What no `except Exception` catches."""


def kill_at(index: int) -> Any:
    def on_step(step: Step) -> None:
        if step.index == index:
            raise Killed

    return on_step


def search(
    source: Path, data: str, recipe: dict[str, Any], out: Path, **options: Any
) -> slt_compress.Ticket:
    made = {"objective": "reconstruct", "target_sparsity": 0.7, "training": SHORT, **recipe}
    if "pattern" in recipe and "target_sparsity" not in recipe:
        del made["target_sparsity"]
    return slt_compress.search(source, data, recipe=parse_recipe(made), out=out, **options)


@pytest.mark.parametrize("case", SEARCHED)
def test_a_search_by_blocks_keeps_the_exact_count_and_is_proved(
    case: str, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    name, data, recipe = SEARCHED[case]
    ticket = search(checkpoints[name], data_sets[data], recipe, tmp_path / "ticket")
    kept = 0.5 if "pattern" in recipe else 0.3
    assert ticket.masks.kept == round(kept * ticket.masks.total)
    assert slt_compress.verify(tmp_path / "ticket", in_process=True).ok
    metrics = report(tmp_path / "ticket").metrics
    assert metrics["hard"]["loss"] > 0.0
    assert metrics["soft"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["ticket"]


@pytest.mark.parametrize("case", ["llama", "signed", "swaps"])
def test_a_killed_search_by_blocks_goes_on_to_the_same_bytes(
    case: str, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    name, data, recipe = SEARCHED[case]
    source, spec = checkpoints[name], data_sets[data]
    whole = search(source, spec, recipe, tmp_path / "whole")
    done: list[str] = []
    if case == "swaps":
        from slt_compress.searching.swapping import SwapWalk

        scores_of = SwapWalk.scores_of

        def once(walk: Any, stage: Any) -> Any:
            done.append(stage.module)
            if len(done) == 2:
                raise Killed
            return scores_of(walk, stage)

        monkeypatch.setattr(SwapWalk, "scores_of", once)
    with pytest.raises(Killed):
        search(source, spec, recipe, tmp_path / "killed", save_every=0.0, on_step=kill_at(4))
    seen: list[int] = []
    search(source, spec, recipe, tmp_path / "killed", on_step=lambda step: seen.append(step.index))
    assert seen == ([] if case == "swaps" else [3, 4, 5])  # the first block is done
    assert len(done) == (3 if case == "swaps" else 0)
    files = sorted(p.name for p in whole.path.iterdir() if p.name != "run.json")
    for file in files:
        assert (whole.path / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


def test_one_block_alone_is_in_memory(checkpoints: dict[str, Path]) -> None:
    hollow = open_hollow(checkpoints["llama"])
    assert hollow is not None
    residence = Residence.of(hollow.module, hollow.streamed)
    inside: list[list[str]] = []

    def resident() -> list[str]:
        return [n for n, p in hollow.module.named_parameters() if not is_placeholder(p) and
                p.dim() > 1]  # fmt: skip

    for block in residence.blocks:
        hollow.module.get_submodule(block).register_forward_pre_hook(
            lambda *_: inside.append(resident())
        )
    assert resident() == []
    batch = {"input_ids": torch.arange(12).reshape(2, 6)}
    with residence.running(), torch.no_grad():
        outside = set(resident())
        logits = hollow.forward(hollow.module, batch)
        with residence.held(residence.blocks[1]):
            assert {n for n in set(resident()) - outside if "layers.1." not in n} == set()
    assert resident() == []
    loading = [{n.split(".")[2] for n in names if n not in outside} for names in inside]
    assert loading == [set(), set()]  # the hook runs before the block's own weights are read
    whole = open_checkpoint(checkpoints["llama"])
    with torch.no_grad():
        assert torch.equal(logits, whole.forward(whole.module, batch))


@pytest.mark.parametrize("name", HOLLOW)
@pytest.mark.parametrize("init", [None, "random"])
def test_a_hollow_checkpoint_is_the_whole_one_tensor_by_tensor(
    name: str, init: str | None, checkpoints: dict[str, Path]
) -> None:
    whole, hollow = open_checkpoint(checkpoints[name], init=init), None
    hollow = open_hollow(checkpoints[name], init=init)
    if hollow is None:
        assert init is not None  # the library's own values are needed
        assert whole.stored
        return
    assert hollow.streamed is not None
    own = whole.module.state_dict()
    assert set(hollow.streamed) == set(own)
    for key, tensor in hollow.module.state_dict().items():
        assert torch.equal(hollow.streamed[key], own[key]), key
        assert is_placeholder(tensor) or torch.equal(tensor, own[key]), key
        assert tensor.shape == own[key].shape
    buffers = dict(whole.module.named_buffers())
    for key, buffer in hollow.module.named_buffers():
        assert torch.equal(buffer, buffers[key]), key
    large = [p for p in hollow.module.parameters() if p.dim() > 1 and p.numel() > 1]
    assert large
    assert all(is_placeholder(p) and bool(p.isnan().all()) for p in large)
    assert hollow.file_keys == {
        name: keys for name, keys in whole.file_keys.items() if name in hollow.file_keys
    }


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ({"training": {**SHORT, "polish": True}}, "training.polish"),
        ({"method": {"name": "relaxed", "prior": "swaps"}}, "prior=swaps"),
        ({"method": {"name": "swaps", "exchange": "global"}}, "one block at a time"),
        ({"method": {"name": "swaps", "diagonal": "auto"}}, "one block at a time"),
        ({"save_scores": True}, "save_scores"),
    ],
)
def test_what_needs_the_whole_network_is_refused(
    recipe: dict[str, Any], match: str, checkpoints: dict[str, Path], data_sets: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(RecipeError, match=match):
        search(checkpoints["llama"], data_sets["prose"], recipe, tmp_path / "ticket")


def test_blocks_learn_to_give_the_dense_output(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoints["vit"], source)
    tensors = load_file(source / "model.safetensors")  # as large as those of a trained network
    save_file({n: 5.0 * t if t.dim() == 2 else t for n, t in tensors.items()},
              source / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    errors = []
    for method, steps in (("relaxed", 40), ("magnitude", 1)):
        recipe = {"method": method, "training": {"steps": steps, "batch_size": 8}}
        search(source, data_sets["pictures"], recipe, tmp_path / method)
        errors.append(_error_of_blocks(source, tmp_path / method, Path(data_sets["pictures"])))
    assert errors[0] < 0.5 * errors[1]


def _error_of_blocks(source: Path, ticket: Path, pictures: Path) -> float:
    """The relative error of the output of the last block on the test pictures."""
    opened, cells = open_checkpoint(source), pq.read_table(pictures / "test.parquet")["picture"]
    images = [Image.open(BytesIO(cell["bytes"])).convert("RGB") for cell in cells.to_pylist()]
    prepared = transformers.AutoImageProcessor.from_pretrained(source)(images, return_tensors="pt")
    pixels = prepared["pixel_values"]
    outputs = []
    for module in (slt_compress.load(ticket), opened.module):
        with capture_outputs(module, block_names(module)) as states, torch.no_grad():
            module(pixels)
        outputs.append(list(states.values())[-1])
    return float(relative_error(*outputs))


@pytest.mark.parametrize("scope", ["global", "type", "layer"])
@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
def test_counts_of_sites_are_those_of_the_mask(scope: Any, floor: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scores: dict[str, Tensor] = {
        f"h.{i}.{kind}": (i + 1) * torch.rand((5 + i, 7), generator=generator)
        for i in range(3)
        for kind in ("q", "v")
    }
    for density in (0.02, 0.31, 0.5, 0.97, 1.0):
        budget = Budget(density=density, scope=scope, floor=floor)
        masks = binarize(scores, budget)
        counts = ranked_counts(scores, budget)
        assert counts == {name: int(mask.sum()) for name, mask in masks.items()}
        even = even_counts({name: score.numel() for name, score in scores.items()}, budget)
        assert sum(even.values()) == masks.kept
        for name, count in even.items():
            assert abs(count - density * scores[name].numel()) < 1.0
        sites = [Site(module=name[:-2], param=name[-1], shape=tuple(scores[name].shape), kind="")
                 for name in list(scores)[2:4]]  # fmt: skip
        if all(counts[site.name] for site in sites):
            own = part_budget(budget, counts, sites)
            some = binarize({site.name: scores[site.name] for site in sites}, own)
            assert some.kept == sum(counts[site.name] for site in sites)


def test_a_placeholder_shows_where_it_is_used(checkpoints: dict[str, Path]) -> None:
    hollow = open_hollow(checkpoints["llama"])
    assert hollow is not None
    logits = hollow.forward(hollow.module, {"input_ids": torch.arange(6)[None]})
    assert bool(logits.isnan().all())
