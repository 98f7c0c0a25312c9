"""What `auto` measured is kept, and believed only where it is of this model and machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pipelines import RECIPE

import slt_compress
from slt_compress.runtime import example_runs, kernel_choice, kernel_plan, remembered
from slt_compress.runtime.benching import bench_path
from slt_compress.runtime.opening import open_path
from slt_compress.runtime.remembered import cache_folder, memory_of


@pytest.fixture(scope="module")
def ticket(checkpoints, data_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remembered") / "vit"
    return slt_compress.search(
        checkpoints["vit"], data_sets["pictures"], recipe=RECIPE, out=folder
    ).path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SLT_COMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel_choice, "MARGIN", 1000.0)  # every layer takes a kernel
    monkeypatch.setattr(kernel_choice, "CLEAR", 1000.0)
    monkeypatch.setattr(example_runs, "SLOWER", 1000.0)


def measuring(monkeypatch) -> list[str]:
    """A list that grows whenever something is measured."""
    calls: list[str] = []
    choose = kernel_plan.choose

    def noted(*args):
        calls.append("choose")
        return choose(*args)

    monkeypatch.setattr(kernel_plan, "choose", noted)
    return calls


def file_of(folder: Path) -> Path:
    (file,) = (folder / "choices").iterdir()
    return file


def test_the_second_load_measures_nothing_and_chooses_the_same(ticket, monkeypatch):
    calls = measuring(monkeypatch)
    first = slt_compress.load(ticket, runtime="auto")
    assert calls == ["choose"]
    monkeypatch.setattr(kernel_plan, "look", None)  # it does not even run
    second = slt_compress.load(ticket, runtime="auto")
    assert calls == ["choose"]
    assert second.slt_runtime == first.slt_runtime
    used = [name for name, layer in first.named_modules() if "forward" in vars(layer)]
    assert used
    assert used == [name for name, layer in second.named_modules() if "forward" in vars(layer)]


def test_a_model_that_was_slower_is_dense_again(ticket, monkeypatch):
    monkeypatch.setattr(example_runs, "SLOWER", 0.0)
    first = slt_compress.load(ticket, runtime="auto")
    calls = measuring(monkeypatch)
    second = slt_compress.load(ticket, runtime="auto")
    assert not calls
    assert second.slt_runtime == first.slt_runtime
    assert not any("forward" in vars(layer) for layer in second.modules())


@pytest.mark.parametrize("what", ["threads", "processor", "versions", "model"])
def test_what_was_measured_elsewhere_says_nothing(ticket, checkpoints, data_sets, tmp_path,
                                                  monkeypatch, what):  # fmt: skip
    slt_compress.load(ticket, runtime="auto")
    calls = measuring(monkeypatch)
    if what == "threads":
        torch.set_num_threads(2)
    elif what == "processor":
        monkeypatch.setattr(remembered, "processor", lambda: "another")
    elif what == "versions":
        monkeypatch.setattr(remembered, "_installed", lambda package: "0.0")
    else:
        ticket = slt_compress.search(
            checkpoints["vit"], data_sets["pictures"],
            recipe=RECIPE, budget=slt_compress.Budget(density=0.25), out=tmp_path / "other",
        ).path  # fmt: skip
    try:
        slt_compress.load(ticket, runtime="auto")
    finally:
        torch.set_num_threads(1)
    assert calls == ["choose"]


def change(**values):
    """Replace values in the file."""

    def edit(file: Path) -> None:
        before = json.loads(file.read_text())
        file.write_text(json.dumps(before | values))

    return edit


def points(one):
    """Give every layer the same points."""

    def edit(file: Path) -> None:
        before = json.loads(file.read_text())
        layers = {name: one for name in before["layers"]}
        file.write_text(json.dumps(before | {"layers": layers}))

    return edit


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_bytes(b"\xff"),
        lambda file: (file.unlink(), file.mkdir()),
        change(facts={"threads": 99}),
        change(layers=None),
        change(layers={"another": {"1": None}}),
        change(faster="yes"),
        change(warning="x" * 1000),
        points(3),
        points({"1": "another"}),
        points({"-1": None}),
        points({"1": 5}),
        points({"x": None}),
    ],
)
def test_a_damaged_or_foreign_file_is_as_good_as_none(ticket, tmp_path, monkeypatch, damage):
    first = slt_compress.load(ticket, runtime="auto")
    damage(file_of(cache_folder()))
    calls = measuring(monkeypatch)
    second = slt_compress.load(ticket, runtime="auto")
    assert calls == ["choose"]
    assert second.slt_runtime.keys() == first.slt_runtime.keys()


def test_a_cache_that_cannot_be_written_is_no_error(ticket, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    calls = measuring(monkeypatch)
    for _ in range(2):
        slt_compress.load(ticket, runtime="auto")
    assert len(calls) == 2


def test_bench_measures_anew(ticket, monkeypatch):
    slt_compress.load(ticket, runtime="auto")
    file = file_of(cache_folder())
    before = file.stat().st_mtime_ns
    calls = measuring(monkeypatch)
    bench_path(ticket, batches=(1,), rounds=1)
    assert calls == ["choose"]
    assert file.stat().st_mtime_ns > before


def test_where_the_cache_is(monkeypatch, tmp_path, ticket):
    monkeypatch.delenv("SLT_COMPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert memory_of(open_path(ticket), "fp32").path.is_relative_to(tmp_path / "slt-compress")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "slt-compress"
