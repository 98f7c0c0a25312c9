"""Plans: the sites, sizes and memory of a search from configurations alone, and its command."""

from __future__ import annotations

import gc
import io
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from transformers import LlamaConfig

import slt_compress
from slt_compress import Recipe, Targets, Training, api
from slt_compress.checkpoints import open_checkpoint, sketch_checkpoint, weight_files
from slt_compress.cli.app import main
from slt_compress.cli.plan_outline import branches, outline
from slt_compress.data import DataOptions
from slt_compress.errors import SourceError, TargetError
from slt_compress.gates import METHODS
from slt_compress.searching.memory_plan import available_memory
from slt_compress.searching.objectives import ObjectiveOptions
from slt_compress.searching.planning import search_command
from slt_compress.sites.sites import find_sites

KEYS = {
    "source", "sparsity", "sites", "skipped", "memory", "sizes", "forecast", "warnings",
    "expectations", "command",
}  # fmt: skip


@pytest.fixture
def configs(checkpoints: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The checkpoints with nothing left of them but `config.json`."""
    for name, folder in checkpoints.items():
        (tmp_path / name).mkdir()
        shutil.copy(folder / "config.json", tmp_path / name)
    return {name: tmp_path / name for name in checkpoints}


def plan_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        main(["plan", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2", "mixtral", "resnet", "convnext"])
def test_a_config_is_planned_as_the_checkpoint_is_searched(
    name: str, checkpoints: dict[str, Path], configs: dict[str, Path]
) -> None:
    opened = open_checkpoint(checkpoints[name])
    sites = find_sites(opened.module, gate_head=not opened.trained_head)
    found = slt_compress.plan(configs[name], recipe=Recipe(target_sparsity=0.75))
    expected = [{"name": s.name, "shape": list(s.shape), "kind": s.kind} for s in sites.sites]
    assert list(found.sites) == expected
    assert found.skipped == sites.skipped
    assert found.sparsity == {
        "target": 0.75,
        "gated": sites.gated,
        "parameters": sum(p.numel() for p in opened.module.parameters()),
    }
    state = {id(t): t for t in opened.module.state_dict(keep_vars=True).values()}
    assert found.sizes["dense"] == sum(t.nbytes for t in state.values())
    assert found.sizes["sparse-csr"] < found.sizes["dense"]
    assert found.source["task"] == opened.task


def test_no_weight_is_read(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("a weight was read")

    monkeypatch.setattr(weight_files, "safe_open", refuse)
    for name, folder in checkpoints.items():
        sketch = sketch_checkpoint(folder)
        assert {p.device.type for p in sketch.module.parameters()} == {"meta"}, name
        assert api.plan(folder).sites
    with pytest.raises(SourceError, match="a weight was read"):
        open_checkpoint(checkpoints["vit"])


def test_the_json_has_the_promised_keys(
    capsys: pytest.CaptureFixture[str], configs: dict[str, Path]
) -> None:
    found = plan_json(capsys, configs["vit"], "--target-sparsity", "0.5")
    assert found.keys() == KEYS | {"schema"}
    assert found["schema"] == "plan-1"
    assert found["sparsity"].keys() == {"target", "gated", "parameters"}
    assert all(site.keys() == {"name", "shape", "kind"} for site in found["sites"])
    assert found["command"] == f"slt-compress search {configs['vit']} --target-sparsity 0.5"
    assert found["forecast"]["seconds_per_step"] is None
    for rows in found["memory"].values():
        for parts in rows.values():
            assert parts.pop("total") == sum(parts.values())


def test_names_of_timm_and_reference_nets_need_no_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    timm = plan_json(capsys, "test_resnet.r160_in1k")
    assert timm["source"]["family"] == "timm"
    assert timm["warnings"] == []
    net = plan_json(capsys, "lenet-300-100", "--init", "random", "--dataset", "digits")
    assert net["sparsity"]["gated"] == 784 * 300 + 300 * 100 + 100 * 10
    assert net["warnings"] == []


def test_what_lacks_weights_is_said(configs: dict[str, Path]) -> None:
    (warning,) = slt_compress.plan("lenet-300-100").warnings
    assert "lenet-300-100 is an architecture without weights: add --init random" in warning
    (warning,) = slt_compress.plan(configs["vit"]).warnings
    assert "no model.safetensors among its files" in warning
    assert not slt_compress.plan(configs["vit"], recipe=Recipe(init="random")).warnings


def test_a_pattern_that_matches_nothing_is_an_error(
    capsys: pytest.CaptureFixture[str], configs: dict[str, Path]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(configs["vit"]), "--set", "targets.exclude=nothing.*"])
    assert ended.value.code == 1
    assert "'nothing.*' matches no parameter" in capsys.readouterr().err
    with pytest.raises(TargetError):
        api.plan(configs["vit"], recipe=Recipe(targets=Targets(include=("re:^no",))))


def test_what_cannot_be_built_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": "wide"}')
    with pytest.raises(SourceError, match="vit config"):
        slt_compress.plan(tmp_path)


def test_a_module_of_ones_own_can_be_planned() -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    found = slt_compress.plan(module)
    assert [site["name"] for site in found.sites] == ["0.weight", "2.weight"]
    assert found.source["kind"] == "module"


def test_the_outline_shows_layers_that_are_alike_as_one(configs: dict[str, Path]) -> None:
    found = slt_compress.plan(configs["llama"])
    console = Console(width=120, record=True, file=io.StringIO())
    for part in outline(found):
        console.print(part)
    text = console.export_text()
    assert "layers.0-1" in text
    assert "task head of a pretrained checkpoint" in text
    assert f"{found.sparsity['gated']:,} weights" in text
    assert found.command in text.replace("\n", "")


def test_branches_that_differ_stay_apart() -> None:
    widths = [3, 3, 4, 3]
    sites = [{"name": f"layers.{i}.w", "shape": [2, w], "kind": "linear"}
             for i, w in enumerate(widths)]  # fmt: skip
    root = branches(sites)
    layers = root.below["layers"]
    assert {name: b.count for name, b in layers.below.items()} == {"0-1": 2, "2": 1, "3": 1}
    assert root.gated == 2 * sum(widths)


def storages() -> dict[int, int]:
    """Bytes of the memory of every tensor that Python knows, by its place.

    Tensors of a traced graph, which other tests leave behind, have no memory.
    """
    tensors = (o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter))
    found = [
        t.untyped_storage() for t in tensors if t.device.type == "cpu" and t.layout is torch.strided
    ]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def test_the_memory_of_a_search_is_as_planned(tmp_path: Path) -> None:
    """All tensors that are alive between two steps fit the plan, and most of it is used."""
    module = nn.Sequential(nn.Linear(256, 512), nn.Linear(512, 8))
    recipe = Recipe(training=Training(steps=3, batch_size=2, device="cpu", selections=1))
    planned = api.plan(module, recipe=recipe).memory["no"]["adam"]
    alive: list[int] = []
    gc.collect()
    mine = {p.untyped_storage().data_ptr() for p in module.parameters()}
    before = storages().keys() - mine

    def count(_: object) -> None:
        alive.append(sum(size for place, size in storages().items() if place not in before))

    def loss_fn(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    api.search(
        module, [torch.randn(2, 256)] * 3, loss_fn=loss_fn, recipe=recipe, out=tmp_path / "t",
        on_step=count,
    )  # fmt: skip
    steady = planned["total"] - planned["gradients"] - planned["transient"]
    assert 0.4 * planned["total"] < max(alive) <= 1.1 * steady


@pytest.mark.parametrize(("name", "data"), [("vit", "pictures"), ("llama", "prose")])
def test_two_steps_are_timed_where_weights_and_data_are_here(
    name: str, data: str, checkpoints: dict[str, Path], data_sets: dict[str, str]
) -> None:
    training = Training(steps=500, batch_size=4, device="cpu")
    found = api.plan(checkpoints[name], data_sets[data], recipe=Recipe(training=training)).forecast
    assert found.seconds_per_step is not None, found.note
    assert 0.0 < found.seconds_per_step < 30.0
    assert (found.steps, found.seconds) == (500, 500 * found.seconds_per_step)
    assert "two steps of 4 examples" in found.note


def test_a_step_is_timed_without_the_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 103.0, 105.0])
    monkeypatch.setattr("slt_compress.searching.training.time.monotonic", lambda: next(clock))
    recipe = Recipe(init="random", training=Training(epochs=2, batch_size=32, max_time=9.0))
    found = api.plan("lenet-300-100", "digits", recipe=recipe).forecast
    assert found.seconds_per_step == 2.5, found.note
    assert found.steps is not None
    assert found.steps > 9.0 / 2.5
    assert found.seconds == 9.0


def test_what_is_not_timed_says_why(
    configs: dict[str, Path],
    checkpoints: dict[str, Path],
    data_sets: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vit, pictures = checkpoints["vit"], data_sets["pictures"]
    cases: list[tuple[str | Path, str | None, Recipe, str]] = [
        (vit, None, Recipe(), "no data set is given"),
        (vit, "some/set", Recipe(), "the data set some/set is not on this machine"),
        (vit, pictures, Recipe(method={"name": "magnitude"}), "magnitude takes no steps"),
        (vit, pictures, Recipe(training=Training(optimizer="sgd")), "sgd needs training.lr"),
        (vit, data_sets["prose"], Recipe(), "text"),
        (configs["vit"], pictures, Recipe(), "there are no weights"),
        ("test_resnet.r160_in1k", pictures, Recipe(), "the weights are on the hub"),
    ]
    for source, data, recipe, note in cases:
        found = api.plan(source, data, recipe=recipe).forecast
        assert found.seconds_per_step is None
        assert found.note.startswith("not measured: ")
        assert note in found.note, found.note
    monkeypatch.setattr("slt_compress.searching.forecasting._LIMIT_GIB", 1e-6)
    assert "a plan uses at most" in api.plan(vit, pictures).forecast.note


text = st.text("abcxyz*.:/_-0 '\"$é", min_size=1, max_size=8).filter(str.strip)
words = st.from_regex(r"[a-z][a-z_]{0,5}", fullmatch=True)
recipes = st.builds(
    Recipe,
    target_sparsity=st.floats(0, 0.999, allow_nan=False),
    method=st.sampled_from(
        [{"name": name} for name in METHODS] + [{"name": "relaxed", "sigma": 0.3}]
    ),
    scope=st.sampled_from(["global", "layer"]),
    floor=st.floats(0, 1, allow_nan=False),
    init=st.none() | st.just("random"),
    dataset=st.none() | st.just("digits"),
    model=st.dictionaries(words, st.integers() | words | st.booleans(), max_size=2),
    data=st.builds(DataOptions, text=st.lists(words, max_size=2).map(tuple)),
    targets=st.builds(Targets, include=st.lists(text, max_size=2).map(tuple)),
    training=st.builds(
        Training, steps=st.none() | st.integers(1, 9), lr=st.floats(1e-6, 1, allow_nan=False),
        seed=st.integers(0, 9), max_time=st.none() | st.floats(0.1, 9, allow_nan=False),
    ),
    save_scores=st.booleans(),
)  # fmt: skip


@settings(deadline=None, max_examples=12)
@given(recipe=recipes)
def test_the_command_searches_by_the_recipe(recipe: Recipe) -> None:
    asked: list[tuple[object, Recipe]] = []

    class StopError(Exception):
        pass

    def search(source: object, *, recipe: Recipe, **_: object) -> None:
        asked.append((source, recipe))
        raise StopError

    program, *arguments = shlex.split(search_command("some/where", recipe))
    assert program == "slt-compress"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "search", search)
        with pytest.raises(StopError):
            main(arguments)
    assert asked == [("some/where", recipe)]


def plan_with(free: int, source: str | Path, training: Training, monkeypatch: Any) -> str:
    monkeypatch.setattr("slt_compress.searching.forecasting.available_memory", lambda: free)
    warnings = api.plan(source, recipe=Recipe(training=training, init="random")).warnings
    return next((warning for warning in warnings if "GiB free" in warning), "")


def test_a_plan_that_does_not_fit_names_the_command_that_does(
    configs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, adam = configs["vit"], Training(optimizer="adam", lr=0.01)
    totals = {}
    for saver in ({}, {"recompute": "blocks"}, {"recompute": "blocks", "state": "bf16"}):
        recipe = Recipe(init="random", training=replace(adam, **saver))
        totals[len(saver)] = api.plan(vit, recipe=recipe).memory["no"]["adam"]["total"]
    assert totals[2] < totals[1] < totals[0]
    assert plan_with(totals[0], vit, adam, monkeypatch) == ""
    said = plan_with(totals[0] - 1, vit, adam, monkeypatch)
    assert said.endswith("--recompute blocks")
    said = plan_with(totals[1] - 1, vit, adam, monkeypatch)
    assert "--recompute blocks" in said
    assert "--state bf16" in said
    said = plan_with(totals[2] - 1, vit, adam, monkeypatch)
    assert "--objective reconstruct" in said
    assert "--recompute" not in said
    assert "no setting of this method" in plan_with(1, vit, adam, monkeypatch)
    assert plan_with(1, vit, replace(adam, device="cuda"), monkeypatch) == ""


def test_a_search_by_blocks_needs_as_much_for_any_number_of_blocks(tmp_path: Path) -> None:
    totals = {}
    for name in ("auto", "reconstruct"):
        for depth in (2, 12):
            config = LlamaConfig(
                hidden_size=64, intermediate_size=160, num_attention_heads=2, vocab_size=99,
                num_hidden_layers=depth,
            )  # fmt: skip
            config.save_pretrained(tmp_path / str(depth))
            recipe = Recipe(init="random", objective=ObjectiveOptions(name=name))
            plan = api.plan(tmp_path / str(depth), recipe=recipe)
            totals[name, depth] = plan.memory["no"]["adam"]["total"]
            assert ("block after the other" in plan.forecast.note) is (name == "reconstruct")
    assert totals["auto", 12] > 5 * totals["auto", 2]
    assert totals["reconstruct", 12] < 1.1 * totals["reconstruct", 2] < totals["auto", 2]


def test_the_memory_that_is_free_is_that_of_the_machine_or_of_its_container(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 200 kB\nMemAvailable:   100 kB\n")
    assert available_memory(tmp_path) == 102400
    groups = tmp_path / "sys" / "fs" / "cgroup"
    groups.mkdir(parents=True)
    for content, free in {"max": 102400, "1000": 1000, "999999": 102400}.items():
        (groups / "memory.max").write_text(f"{content}\n")
        assert available_memory(tmp_path) == free
    assert (available_memory() or 0) > 1 << 20
