"""Resuming: a search that was killed anywhere ends in the byte-identical ticket."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import slt_compress
from slt_compress import Recipe, SltError, Training
from slt_compress.errors import TicketError
from slt_compress.gates import METHODS
from slt_compress.searching import running
from slt_compress.searching.conclusion import Measuring
from slt_compress.searching.recipes import parse_recipe
from slt_compress.searching.reserving import interrupted
from slt_compress.searching.resuming import SearchFolder, search_folder
from slt_compress.searching.search import Search, _saved_scores
from slt_compress.searching.state import Step
from slt_compress.searching.workloads import open_workload

SHORT = {"steps": 9, "batch_size": 4, "selections": 3, "hard": 0.6}


class Killed(BaseException):
    """What no `except Exception` catches."""


def kill_at(index: int) -> Any:
    def on_step(step: Step) -> None:
        if step.index == index:
            raise Killed

    return on_step


def digests(ticket: Path) -> dict[str, str]:
    """Hash of every file of a ticket but the one that holds the clock."""
    files = sorted(p for p in ticket.rglob("*") if p.is_file() and p.name != "run.json")
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def search(source: Any, data: str, recipe: dict[str, Any], out: Path, **options: Any) -> Path:
    options = {"save_every": 0.0, **options}
    return slt_compress.search(source, data, recipe=parse_recipe(recipe), out=out, **options).path


SIGNED = {"name": "relaxed", "signed": True}
CASES = {
    "relaxed": ("vit", "pictures", {"method": "relaxed", "training": SHORT}),
    "sgd": ("vit", "pictures", {"training": {**SHORT, "optimizer": "sgd", "lr": 0.1}}),
    "batchnorm": ("resnet", "pictures", {"training": SHORT, "save_scores": True}),
    "signed": (
        "vit",
        "pictures",
        {"method": {"name": "relaxed", "signed": True}, "training": SHORT},
    ),
    "groups": ("llama", "prose", {"pattern": "2:4", "training": SHORT}),
    "patience": ("bert", "reviews", {"training": {**SHORT, "patience": 1, "ema": 0.0}}),
    "gumbel": ("vit", "pictures", {"method": "gumbel", "init": "random", "training": SHORT}),
    "tuned": (
        "resnet",
        "pictures",
        {
            "pattern": "channel",
            "tuning": {"gains": "unit", "parameters": "norms,biases"},
            "training": SHORT,
        },
    ),
    "fp-cast": ("vit", "pictures", {"training": {**SHORT, "precision": "bf16", "clip": 1.0}}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_search_goes_on_to_the_same_bytes(
    case: str, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    name, data, recipe = CASES[case]
    source, spec = checkpoints[name], data_sets[data]
    whole = search(source, spec, recipe, tmp_path / "whole")
    for stops in ([0], [3], [5, 6], [8]):
        out = tmp_path / f"resumed-{stops[0]}"
        steps: list[Step] = []
        for index in stops:
            with pytest.raises(Killed):
                search(source, spec, recipe, out, on_step=kill_at(index))
        resumed = search(source, spec, recipe, out, on_step=steps.append)
        assert digests(resumed) == digests(whole), stops
        # the step after which it was stopped is saved
        assert [step.index for step in steps][:1] in ([stops[-1] + 1], []), stops
        assert not out.with_name(out.name + ".search").exists()


@pytest.mark.parametrize("method", METHODS)
def test_what_was_trained_is_kept_while_it_is_measured(
    method: str, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An exception after the last step loses no step."""
    recipe = {"method": method, "training": SHORT}
    source, spec, out = checkpoints["vit"], data_sets["pictures"], tmp_path / "ticket"
    with monkeypatch.context() as patch:
        patch.setattr("slt_compress.searching.conclusion.control_masks", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            search(source, spec, recipe, out)
    steps: list[Step] = []
    with monkeypatch.context() as patch:
        patch.setattr("slt_compress.searching.search.first_scores", lambda *a, **k: 1 / 0)
        resumed = search(source, spec, recipe, out, on_step=steps.append)
    assert not steps
    assert digests(resumed) == digests(search(source, spec, recipe, tmp_path / "whole"))


def without_measuring(*arguments: Any) -> Any:
    checkpoint, prepared, workload = open_workload(*arguments)
    return checkpoint, prepared, replace(workload, measure=lambda *a, **k: 1 / 0)


@pytest.mark.parametrize("at", [0, 1])
def test_a_measurement_of_the_selection_that_is_cut_short_is_made_again(
    at: int, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Ctrl-C while a mask is measured, between the steps or after the last: no step is lost."""
    recipe, source, spec = {"training": SHORT}, checkpoints["vit"], data_sets["pictures"]
    measure, calls = Measuring.held_out_loss, iter(range(at + 1))

    def cut_short(self: Measuring, scores: Mapping[str, torch.Tensor]) -> float:
        if next(calls) == at:
            raise KeyboardInterrupt
        return measure(self, scores)

    with monkeypatch.context() as patch:
        patch.setattr(Measuring, "held_out_loss", cut_short)
        with pytest.raises(KeyboardInterrupt):
            search(source, spec, recipe, tmp_path / "ticket", save_every=300.0)
    steps: list[Step] = []
    resumed = search(source, spec, recipe, tmp_path / "ticket", on_step=steps.append)
    assert len(steps) < SHORT["steps"] / 2
    assert digests(resumed) == digests(search(source, spec, recipe, tmp_path / "whole"))


@pytest.mark.parametrize("method", ["wanda", "swaps"])
def test_scores_of_one_shot_are_kept_while_the_dense_network_is_measured(
    method: str, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    recipe, source, spec = {"method": method}, checkpoints["vit"], data_sets["pictures"]
    with monkeypatch.context() as patch:
        patch.setattr(running, "open_workload", without_measuring)
        with pytest.raises(ZeroDivisionError):
            search(source, spec, recipe, tmp_path / "ticket")
    with monkeypatch.context() as patch:
        patch.setattr(Search, "_start", lambda self, weights, saved: _saved_scores(saved))
        resumed = search(source, spec, recipe, tmp_path / "ticket")
    assert digests(resumed) == digests(search(source, spec, recipe, tmp_path / "whole"))


def test_a_changed_search_is_refused_with_what_changed(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    source, spec, out = checkpoints["vit"], data_sets["pictures"], tmp_path / "ticket"
    with pytest.raises(Killed):
        search(source, spec, {"training": SHORT}, out, on_step=kill_at(4))
    longer = {"training": {**SHORT, "steps": 12}}
    with pytest.raises(TicketError, match=r"recipe\.training\.steps was 9 and is 12.*--fresh"):
        search(source, spec, longer, out)
    other = slt_compress.open_checkpoint(source).module
    with torch.no_grad():
        next(p for p in other.parameters() if p.dim() == 2).add_(1.0)
    shutil.copytree(source, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(TicketError, match=r"origin\.weights_hash was"):
        search(tmp_path / "other", spec, {"training": SHORT}, out)
    fresh = search(source, spec, longer, out, fresh=True)
    assert digests(fresh) == digests(search(source, spec, longer, tmp_path / "whole"))


def test_another_process_in_the_folder_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ticket.search"
    with (
        search_folder(path, {"a": 1}, fresh=False),
        pytest.raises(TicketError, match="another process is searching"),
        search_folder(path, {"a": 1}, fresh=False),
    ):
        pass
    assert not path.exists(), "a search that saved nothing leaves nothing"


def test_a_free_name_that_is_being_searched_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(init="random", method={"name": "random"}, dataset="digits")
    first = Path("tickets/lenet-300-100-random-0.9.search")
    with search_folder(first, {}, fresh=False):
        ticket = slt_compress.search("lenet-300-100", recipe=recipe)
    assert ticket.path.name == "lenet-300-100-random-0.9-2"


@pytest.mark.parametrize("damage", ["cut", "version", "kind", "state", "empty"])
def test_a_damaged_state_is_refused_and_fresh_starts_over(
    damage: str, checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    source, spec, out = checkpoints["vit"], data_sets["pictures"], tmp_path / "ticket"
    with pytest.raises(Killed):
        search(source, spec, {"training": SHORT}, out, on_step=kill_at(4))
    file = tmp_path / "ticket.search" / "state.safetensors"
    content = file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts = json.loads(header["__metadata__"]["slt"])
    if damage in ("cut", "empty"):
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    else:
        changed = {"version": {"version": 9}, "kind": {"kind": "x"}, "state": {"state": {}}}
        save_file(load_file(file), file, metadata={"slt": json.dumps(facts | changed[damage])})
    with pytest.raises(TicketError) as refusal:
        search(source, spec, {"training": SHORT}, out)
    assert "\n" not in str(refusal.value)
    search(source, spec, {"training": SHORT}, out, fresh=True)


def test_a_search_that_diverged_keeps_nothing_to_go_on_from(tmp_path: Path) -> None:
    module, data = nn.Linear(4, 2), [torch.ones(3, 4)] * 4

    calls = 0

    def growing(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return model(batch).square().mean() + (float("nan") if calls > 12 else 0.0)

    recipe = Recipe(training=Training(steps=30, selections=0), target_sparsity=0.5)
    with pytest.raises(SltError, match="the loss is nan"):
        slt_compress.search(module, data, loss_fn=growing, recipe=recipe, out=tmp_path / "t",
                            save_every=0.0)  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_what_a_search_left_beside_its_own_ticket_goes_with_the_next_command(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed between the ticket and the end: the next search that is refused there cleans up."""
    source, spec, out = checkpoints["vit"], data_sets["pictures"], tmp_path / "ticket"
    left = out.with_name("ticket.search")
    with monkeypatch.context() as patch:
        patch.setattr(SearchFolder, "remove", lambda self: None)
        search(source, spec, {"training": SHORT}, out)
    assert (left / "state.safetensors").exists()
    about = (left / "search.json").read_text()
    (left / "search.json").write_text(about.replace('"steps": 9', '"steps": 8'))
    for text, kept in ((about.replace('"steps": 9', '"steps": 8'), True), (about, False)):
        (left / "search.json").write_text(text)  # that of another search is somebody's work
        with pytest.raises(TicketError, match="is not empty"):
            search(source, spec, {"training": SHORT}, out)
        assert left.exists() is kept


def test_the_folder_alone_says_what_to_repeat(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    source, spec, out = checkpoints["vit"], data_sets["pictures"], tmp_path / "ticket"
    recipe = {"training": SHORT, "target_sparsity": 0.7}
    with pytest.raises(Killed):
        search(source, spec, recipe, out, on_step=kill_at(4))
    for path in (out, tmp_path / "ticket.search"):
        again, content, ticket = interrupted(path)
        assert (again, ticket) == (str(source), out)
    resumed = slt_compress.search(again, recipe=content, out=ticket).path
    assert digests(resumed) == digests(search(source, spec, recipe, tmp_path / "whole"))
    with pytest.raises(TicketError, match="is not the folder of an interrupted search"):
        interrupted(tmp_path / "nothing")


CHILD = """
import sys
from slt_compress.cli import main
main(["search", "lenet-300-100", "--init", "random", "--dataset", "digits", "--steps", "400",
      "--batch-size", "32", "--save-every", "0.05", "-o", sys.argv[1], "--quiet"])
"""


def test_a_killed_process_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 at moments that the clock chooses; the same command said again."""
    command = [sys.executable, "-c", CHILD]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    state = tmp_path / "killed.search" / "state.safetensors"
    for _ in range(2):
        child = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL)
        seen = state.stat().st_mtime_ns if state.exists() else 0
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            if state.exists() and state.stat().st_mtime_ns != seen:
                break
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def test_saves_are_as_far_apart_as_asked_for(tmp_path: Path) -> None:
    assert not SearchFolder(tmp_path, 1000.0).due()
    assert SearchFolder(tmp_path, 0.0).due()
    assert not SearchFolder(tmp_path, 0.0, writes=False).due()
