"""The examples run as they are and say what their text promises."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.usefixtures("no_accelerator_left")


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_run_here() -> None:
    names = {
        "compare_methods.py", "digits.py", "export_onnx.py", "finetune_sparse.py", "own_module.py",
        "serve_fast.py", "two_tasks.py",
    }  # fmt: skip
    assert {path.name for path in EXAMPLES.glob("*.py")} == names
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 60


def test_digits(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("digits.py", capsys)
    assert "80.0% sparse, accuracy 9" in out
    assert "bytes instead of 1,066,440" in out
    assert "verified - LeNet300" in out
    assert "NOT" not in out


def test_own_module(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("own_module.py", capsys)
    assert "kept 576 of 2304 weights" in out
    assert "bytes, verified" in out
    whole, kept = (float(line.split()[-1].rstrip("%")) for line in out.splitlines()[2:])
    assert kept > 85.0 > whole


def test_two_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    first, last, shared = run("two_tasks.py", capsys).splitlines()
    on_first = [int(share) for share in re.findall(r"(\d+)%", first)]
    on_last = [int(share) for share in re.findall(r"(\d+)%", last)]
    assert on_first[0] > 85 > 65 > on_first[1]
    assert on_last[1] > 85 > 65 > on_last[0]
    assert "keeps 1382 of 4608 weights" in shared


def test_compare_methods(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("compare_methods.py", capsys)
    mean = dict(re.findall(r"([\w-]+): accuracy ([\d.]+)%", out))
    assert set(mean) == {"relaxed", "edge-popup", "random"}
    assert float(mean["relaxed"]) > 60.0 > 30.0 > float(mean["random"])


def test_serve_fast(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("serve_fast.py", capsys)
    assert "the same answers" in out
    assert out.count("requests a second") == 2
    assert "fc1: " in out


def test_export_onnx(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("export_onnx.py", capsys)
    assert "answers for 5 images, 10 classes" in out
    assert "verified" in out.splitlines()
    assert "The ticket holds: all 212,960 of its zeros are 0" in out


def test_finetune_sparse(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("finetune_sparse.py", capsys)
    assert float(out.split("accuracy ")[1].split("%")[0]) > 80.0
    assert "The ticket holds: all 52," in out
    assert "kept weights" in out
