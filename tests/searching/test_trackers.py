"""Trackers hear a search through accelerate, whichever tracker it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker, on_main_process

import slt_compress
from slt_compress.errors import RecipeError, SltError
from slt_compress.searching import trackers
from slt_compress.searching.recipes import parse_recipe
from slt_compress.searching.trackers import tracked

RECIPE = {"init": "random", "training": {"steps": 4, "batch_size": 16, "selections": 1},
          "evaluation": {"limit": 40}}  # fmt: skip


class Recorder(GeneralTracker):
    """A tracker of accelerate that keeps what it is told, and uses its logger as others do."""

    name = "recorder"
    requires_logging_directory = True
    told: list[Any] = []  # noqa: RUF012  (of the one instance that the test makes)

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__(_blank=True)
        self.told.append(("made", run_name, logging_dir))

    @on_main_process
    def start(self) -> None:
        tracking.logger.debug("needs a state of accelerate")

    @property
    def tracker(self) -> Any:
        return self

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("config", values))

    @on_main_process
    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        tracking.logger.debug("needs a state of accelerate")
        self.told.append((step, values))

    @on_main_process
    def finish(self) -> None:
        tracking.logger.debug("needs a state of accelerate")
        self.told.append("finished")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    Recorder.told = []
    return Recorder.told


def test_a_search_is_tracked(recorder: list[Any], tmp_path: Path) -> None:
    recipe, before = parse_recipe(RECIPE), dict(PartialState._shared_state)
    with tracked(["recorder"], "run", recipe.to_dict(), tmp_path) as track:
        ticket = slt_compress.search("lenet-300-100", "digits", recipe=recipe, progress=track,
                                     out=tmp_path / "t")  # fmt: skip
    made, config, *logged, end = recorder
    assert made == ("made", "run", str(tmp_path))
    assert config[1]["training.steps"] == 4
    assert "data.label" not in config[1]  # null
    assert end == "finished"
    steps = [entry for entry in logged if "loss" in entry[1]]
    assert [step for step, _ in steps] == [1, 2, 3, 4]
    assert set(steps[0][1]) == {"loss", "sparsity", "batch_score"}
    assert [entry[0] for entry in logged if "held_out_loss" in entry[1]] == [4]
    final = logged[-1][1]
    assert final["hard/accuracy"] == (ticket.metrics["hard"] or {})["accuracy"]
    assert final["achieved_sparsity"] == pytest.approx(0.9)
    assert dict(PartialState._shared_state) == before


def test_a_search_that_fails_leaves_no_tracker_open(recorder: list[Any], tmp_path: Path) -> None:
    with (
        pytest.raises(SltError, match=r"labels|weights"),
        tracked(["recorder"], "run", {}, tmp_path) as track,
    ):
        slt_compress.search("lenet-300-100", "digits", progress=track, out=tmp_path / "t")
    assert track._opened == []


def test_a_tracker_that_nobody_knows_or_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (
        pytest.raises(RecipeError, match=r"did you mean tensorboard\?"),
        tracked(["tensorbord"], "run", {}),
    ):
        pass

    class Missing(Recorder):
        def start(self) -> None:
            raise ModuleNotFoundError("No module named 'missing'")

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "missing", Missing)
    with (
        pytest.raises(SltError, match=r"missing is not installed.*pip install missing"),
        tracked(["missing"], "run", {}, tmp_path) as track,
    ):
        slt_compress.search("lenet-300-100", "digits", recipe=parse_recipe(RECIPE),
                            progress=track, out=tmp_path / "t")  # fmt: skip
    assert not (tmp_path / "t").exists()
    assert Path("runs") == trackers.FOLDER
