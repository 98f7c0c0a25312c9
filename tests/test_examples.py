"""The examples run as they are and say what their text promises."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def test_every_example_is_run_here() -> None:
    names = {"digits.py", "finetune_sparse.py", "own_module.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == names


def test_digits(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("digits.py", capsys)
    assert "80.0% sparse, accuracy 9" in out
    assert "bytes instead of 1,066,440" in out
    assert "verified - LeNet300" in out
    assert "NOT" not in out


def test_own_module(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("own_module.py", capsys)
    assert "kept 576 of 2304 weights" in out
    whole, kept = (float(line.split()[-1].rstrip("%")) for line in out.splitlines()[1:])
    assert kept > 90.0 > whole


def test_finetune_sparse(capsys: pytest.CaptureFixture[str]) -> None:
    out = run("finetune_sparse.py", capsys)
    assert float(out.split("accuracy ")[1].split("%")[0]) > 80.0
    assert "The ticket holds: all 52," in out
    assert "kept weights" in out
