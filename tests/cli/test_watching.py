"""Watching a search: dated lines, what is announced, the summary; and data that nobody named."""

from __future__ import annotations

import io
import re
import shutil
from contextlib import redirect_stderr
from pathlib import Path

import datasets
import pytest

from slt_compress.cli.app import main
from slt_compress.cli.following import Following
from slt_compress.cli.json_output import print_json_line
from slt_compress.cli.subjects import hanging, line_of
from slt_compress.cli.watching import DatedLines
from slt_compress.searching.events import Advanced, HeldOut, Part, Result
from slt_compress.searching.state import Step

NET = ["search", "lenet-300-100", "--init", "random", "--dataset", "digits"]
FAST = ["--steps", "40", "--set", "evaluation.limit=20", "--set", "training.selections=1"]
DATE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)")


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out, err


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def step(index: int, total: int) -> Step:
    return Step(index=index, total=total, loss=1.0, density=0.5, target=0.1, soft_metric=None,
                progress=index / total, seconds=float(index), hard=False)  # fmt: skip


def test_a_search_is_announced_shown_and_concluded(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, *NET, *FAST)
    assert out == "tickets/lenet-300-100-relaxed-0.9\n"
    lines = err.splitlines()
    first = next(index for index, line in enumerate(lines) if "first scores" in line)
    announced = [line for line in lines[:first] if not DATE.match(line)]
    assert [line.split()[0] for line in announced] == [
        "source", "data", "examples", "sites", "target", "method", "memory", "ticket",
    ]  # fmt: skip
    assert len(announced) + err.count("\ntime ") <= 10
    assert "tickets/lenet-300-100-relaxed-0.9" in announced[-1]
    assert "26,620 weights are kept" in err
    dated = [found[1] for line in lines if (found := DATE.match(line))]
    assert "measuring the dense network" in dated
    assert "measuring the controls" in dated
    assert any(line.startswith("searching: step 40/40, sparsity 0.900 → 0.9") for line in dated)
    assert "for the other 37 steps" in err
    end = lines[lines.index(next(line for line in lines if "writing the ticket" in line)) + 1 :]
    subjects = [line[:10].strip() for line in end]
    assert subjects[:4] == ["accuracy", "controls", "sparsity", "bytes"]
    assert subjects[-2:] == ["next", ""]
    assert "95 % interval" in end[0]


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = run(capsys, *NET, *FAST, "--quiet")
    assert err == ""


def test_dated_lines_come_with_steps_and_with_time() -> None:
    now = [0.0]
    following = Following(clock=lambda: now[0])
    lines, text = DatedLines(following), io.StringIO()
    with redirect_stderr(text):
        lines(Part("open"))
        lines(Part("search"))
        for index in range(1000):
            now[0] += 0.001
            lines(step(index, 1000))
        steps = text.getvalue().count("searching: step")
        assert 20 <= steps <= 23
        lines(HeldOut(999, 1.0))
        lines(Result({}, 0.9))
        lines(Part("controls"))
        for index in range(100):
            now[0] += 1.0
            lines(Advanced(index + 1, 100))
    shown = text.getvalue()
    measuring = [line for line in shown.splitlines() if "measuring the controls:" in line]
    assert 4 <= len(measuring) <= 6  # one in twenty seconds
    assert all(" left" in line for line in measuring)


def test_a_slow_search_is_never_silent_for_long() -> None:
    now = [0.0]
    lines, text = DatedLines(Following(clock=lambda: now[0])), io.StringIO()
    with redirect_stderr(text):
        for index in range(10):
            now[0] += 30.0
            lines(step(index, 100_000))
    assert text.getvalue().count("searching: step") == 10


def test_a_comparison_starts_its_curves_anew() -> None:
    following = Following(clock=lambda: 0.0)
    for _ in range(2):
        following.hear(Part("open"))
        assert following.losses == []
        for index in range(3):
            following.hear(step(index, 3))
    assert len(following.losses) == 3


def test_long_series_stay_short() -> None:
    following = Following(clock=lambda: 0.0)
    for index in range(5000):
        following.hear(step(index, 5000))
    assert 200 < len(following.losses) <= 512


def test_lines_fold_under_their_text_and_commands_stay_whole() -> None:
    text = hanging(line_of("subject", "one two three four"), 20).plain
    assert text == "subject   one two\n          three four"
    command = line_of("next", "slt-compress report tickets/a --html report.html")
    assert "\n" not in hanging(command, 20).plain
    assert hanging("short", 80).plain == "short"


def test_json_lines_have_no_infinities(capsys: pytest.CaptureFixture[str]) -> None:
    print_json_line({"event": "log", "value": float("inf")}, "event")
    assert '"value": null' in capsys.readouterr().err


@pytest.mark.parametrize(("name", "wanted"), [
    ("vit", "timm/mini-imagenet"), ("gpt2", "wikitext"), ("bert", "wikitext"),
])  # fmt: skip
def test_data_that_nobody_named_and_no_network(
    name: str, wanted: str, checkpoints: dict[str, Path], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("cache").absolute()))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("datasets").absolute())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    shutil.copytree(checkpoints[name], name)
    _, err = run(capsys, "search", name, "--steps", "1", code=1)
    announced, *_, error = [line for line in err.splitlines() if not DATE.match(line)]
    assert announced.startswith("default   no --dataset is given: ")
    assert wanted in announced
    assert "B" in announced
    assert error.startswith("error: no data set is named, so the default for ")
    assert "hub cannot be reached" in error
    for way in ("--dataset", "HF_ENDPOINT", "hf download"):
        assert way in error
