"""The command line for machines: JSON with its schemas, errors as JSON, events as lines, pipes."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from json_schemas import FOLDER, problems, schema_of

import slt_compress
from slt_compress.cli.app import main
from slt_compress.cli.help_pages import COMMANDS, EXAMPLES
from slt_compress.cli.json_output import SCHEMAS
from slt_compress.searching.recipe_names import OPEN, SECTIONS, is_known, recipe_keys

ROOT = Path(__file__).parents[2]
NET = ["lenet-300-100", "--init", "random", "--dataset", "digits"]
FAST = ["--steps", "3", "--set", "evaluation.limit=20", "--set", "training.selections=1"]


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out, err


def fits(text: str, kind: str) -> dict[str, Any]:
    """The JSON, which fits its schema."""
    content: dict[str, Any] = json.loads(text)
    assert content["schema"] == f"{kind}-{SCHEMAS[kind]}"
    schema = schema_of(content["schema"])
    assert not problems(content, schema)
    return content


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        with pytest.raises(SystemExit):
            main(["search", *NET, *FAST, "--quiet", "-o", "tickets/one"])
    return root / "tickets" / "one"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_there_is_a_schema_for_each_kind_of_output() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {
        f"{kind}-{number}" for kind, number in SCHEMAS.items()
    }
    for path in FOLDER.glob("*.json"):
        schema = json.loads(path.read_text())
        assert schema["$id"] == schema["title"] == path.stem
        assert schema["properties"]["schema"] == {"const": path.stem}
        assert problems({}, schema)


def test_every_output_fits_its_schema(capsys: pytest.CaptureFixture[str], ticket: Path) -> None:
    one = str(ticket)
    for kind, words in {
        "report": ["report", one], "plan": ["plan", *NET[:3]], "verification": ["verify", one],
        "evaluation": ["evaluate", one], "difference": ["tickets", "diff", one, one],
        "tickets": ["tickets", "list", str(ticket.parent)], "doctor": ["doctor"],
        "artifact": ["export", one, "-o", "out"], "page": ["report", one, "--html", "page.html"],
        "bench": ["bench", one, "--rounds", "1", "--batch", "1"],
    }.items():  # fmt: skip
        fits(run(capsys, *words, "--json")[0], kind)
    fits(run(capsys, "audit", "out", "--ticket", one, "--json")[0], "audit")
    several = fits(run(capsys, "report", one, "out", "--json")[0], "report")
    assert [entry["path"] for entry in several["reports"]] == [one, "out"]


def test_a_search_tells_its_events_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "search", *NET, *FAST, "--json")
    found = fits(out, "search")
    events = [fits(line, "event") for line in err.splitlines()]
    kinds = {event["event"] for event in events}
    assert kinds == {"part", "step", "held_out", "advanced", "announced", "result"}
    assert [e["index"] for e in events if e["event"] == "step"] == [0, 1, 2]
    (result,) = (e for e in events if e["event"] == "result")
    assert result["metrics"]["hard"] == found["metrics"]["hard"]
    subjects = [e["subject"] for e in events if e["event"] == "announced"]
    assert subjects == ["source", "data", "examples", "sites", "target", "method", "memory",
                        "ticket"]  # fmt: skip
    assert found["ticket"] in next(e["text"] for e in events if e.get("subject") == "ticket")


def test_a_comparison_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, "compare", *NET, *FAST, "--methods", "random", "--seeds", "1",
                   "--json", "-o", "c")  # fmt: skip
    fits(out, "comparison")
    assert [fits(line, "event")["event"] for line in err.splitlines()].count("row") == 1
    _, err = run(capsys, "compare", *NET, *FAST, "--methods", "random", "--seeds", "1",
                 "--json", "-o", "d", "--quiet")  # fmt: skip
    assert err == ""


ERRORS = [
    (["report", "nowhere"], 1, "TicketError"),
    (["search", "lenet-300-100", "--dataset", "digits"], 1, "SourceError"),
    (["search", "x", "--target-sparsity", "2"], 2, "UsageError"),
    (["plan"], 2, "UsageError"),
]


@pytest.mark.parametrize(("words", "code", "kind"), ERRORS)
def test_errors_under_json_are_json(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, kind: str
) -> None:
    out, err = run(capsys, *words, "--json", code=code)
    assert out == ""
    error = fits(err.splitlines()[-1], "error")["error"]
    assert (error["kind"], error["exit_code"]) == (kind, code)


def test_verify_in_a_process_of_its_own_hands_its_error_on(tmp_path: Path) -> None:
    with pytest.raises(slt_compress.SltError, match="nowhere"):
        slt_compress.verify(tmp_path / "nowhere")


@pytest.mark.parametrize("words", [["report"], ["report", "--json"], ["plan", *NET[:3], "--full"]])
def test_a_reader_that_goes_away_is_no_error(words: list[str], ticket: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "slt_compress", *words], cwd=ticket.parents[1],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")


def test_the_names_of_recipe_keys_are_those_of_its_dataclasses() -> None:
    found: list[str] = []

    def walk(kind: type[Any], path: str) -> None:
        hints = get_type_hints(kind)
        for entry in fields(kind):
            found.append(path + entry.name)
            if is_dataclass(hints[entry.name]):
                walk(hints[entry.name], f"{path}{entry.name}.")  # type: ignore[arg-type]

    walk(slt_compress.Recipe, "")
    assert set(recipe_keys()) == set(found)
    for file, name in SECTIONS.values():
        home = importlib.import_module(f"slt_compress.{file.removesuffix('.py').replace('/', '.')}")
        assert is_dataclass(getattr(home, name))
    assert all(is_known(f"{section}.anything") for section in OPEN)


MEANT = [
    (["search", "x", "--target-sparsity", "90"], "did you mean 0.9?"),
    (["compare", "x", "--target-sparsity", "0.5,80"], "did you mean 0.8?"),
    (["search", "x", "--set", "lr=1"], "did you mean training.lr?"),
    (["plan", "x", "--set", "training.step=1"], "did you mean training.steps?"),
    (["search", "lenet300"], "did you mean lenet-300-100?"),
    (["search", "x", "--method", "relax"], "did you mean relaxed?"),
    (["compare", "x", "--methods", "magnitud"], "did you mean magnitude?"),
    (["search", "x", "--pattern", "nueron"], "did you mean neuron?"),
    (["search", "x", "--scope", "layers"], "did you mean layer?"),
    (["export", "--format", "sparse_csr"], "did you mean sparse-csr?"),
    (["recipes", "show", "smok"], "did you mean smoke?"),
    (["serch"], "search"),
]


@pytest.mark.parametrize(("words", "answer"), MEANT)
def test_what_was_meant(capsys: pytest.CaptureFixture[str], words: list[str], answer: str) -> None:
    assert answer in " ".join(run(capsys, *words, code=2)[1].split())


@pytest.mark.parametrize("words", [words for words, _ in MEANT if words[0] != "recipes"])
def test_wrong_words_are_answered_before_anything_heavy(words: list[str]) -> None:
    code = f"""
import sys
from slt_compress.cli.app import main
try: main({words!r})
except SystemExit as ended: assert ended.code == 2, ended.code
assert not {{"torch", "transformers", "numpy"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_help_has_every_command_in_a_group_with_an_example(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import typer

    from slt_compress.cli.app import app

    command: Any = typer.main.get_command(app)
    grouped = [name for lines in COMMANDS.values() for name in lines]
    assert sorted(grouped) == sorted(command.commands)
    paths = [""]
    for name, child in command.commands.items():
        paths += [name, *(f"{name} {inner}" for inner in getattr(child, "commands", {}))]
    assert set(paths) == set(EXAMPLES)
    for path in paths:
        text, _ = run(capsys, *path.split(), "--help")
        assert f"$ slt-compress {EXAMPLES[path]}\n" in text
        assert all(len(line) <= 80 for line in text.splitlines())


def test_completion_knows_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slt_compress"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "_SLT_COMPRESS_COMPLETE": "complete_bash",
             "COMP_WORDS": "slt-compress se", "COMP_CWORD": "1"},
    )  # fmt: skip
    assert done.stdout.split() == ["search"]


def test_the_doctor_respects_the_settings_of_the_hub(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slt_compress", "doctor", "--json"], capture_output=True, text=True,
        check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9",
             "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    found = fits(done.stdout, "doctor")
    assert found["hub"] == {"endpoint": "http://127.0.0.1:9", "offline": True}
    assert found["cache"]["path"].startswith(str(tmp_path / "home"))
    assert found["variables"]["HF_HUB_OFFLINE"] == "1"
    assert found["libraries"]["torch"]
