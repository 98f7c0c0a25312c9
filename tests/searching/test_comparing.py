"""`compare`: rows, summary, what a terminal shows, and going on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace
from typing import Any

import pytest

import slt_compress
from slt_compress import api
from slt_compress.cli.app import main
from slt_compress.errors import RecipeError, SltError, SourceError
from slt_compress.gates import Relaxed
from slt_compress.searching.comparing import Comparison, Row, _difference, planned
from slt_compress.searching.recipes import Recipe, parse_recipe
from slt_compress.searching.settings import Training
from slt_compress.tickets import read_ticket

LENET = ["compare", "lenet-300-100", "--init", "random", "--dataset", "digits", "--steps", "2"]
FAST = ["--set", "evaluation.limit=20", "--set", "training.selections=1", "--quiet"]
ROW = {"method", "sparsity", "seed", "hard", "seconds", "ticket"}


def run(capsys, *arguments, code=0):
    """stdout and stderr of one comparison; its exit code is checked."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in (*LENET, *FAST, *arguments)])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out, err


def compared(capsys, *arguments, code=0):
    return json.loads(run(capsys, *arguments, "--json", code=code)[0])


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def searched(monkeypatch):
    """Searches that take no time: the accuracy is the sparsity and a little of the seed."""
    recipes = []

    def search(source, *, method, recipe, out, on_step, progress):
        recipes.append(recipe)
        hard = {"accuracy": recipe.target_sparsity + recipe.training.seed / 100, "loss": 1.0}
        return SimpleNamespace(metrics={"hard": hard}, path=out)

    monkeypatch.setattr(api, "search", search)
    return recipes


def failing(monkeypatch, method, error):
    """The searches of one method end in `error`."""
    search = api.search

    def broken(source, *, recipe, **options):
        if recipe.method["name"] == method:
            raise error
        return search(source, recipe=recipe, **options)

    monkeypatch.setattr(api, "search", broken)


def keys(rows):
    return [(entry["method"], entry["sparsity"], entry["seed"]) for entry in rows]


def row(method="relaxed", sparsity=0.9, seed=0, error=None, **hard):
    return Row(
        method=method, sparsity=sparsity, seed=seed, hard=None if error else hard, seconds=1.5,
        ticket=None if error else "t", error=error,
    )  # fmt: skip


def test_every_row_is_a_search(capsys):
    arguments = ["--methods", "edge-popup,magnitude", "--target-sparsity", "0.5,0.9"]
    content = compared(capsys, *arguments, "--seeds", "2", "--seed", "3")
    assert set(content) == {"rows", "schema", "summary"}
    rows = content["rows"]
    assert keys(rows) == [
        (method, sparsity, seed)
        for seed in (3, 4)
        for sparsity in (0.5, 0.9)
        for method in ("edge-popup", "magnitude")
    ]
    for entry in rows:
        assert set(entry) == ROW
        assert 0 < entry["seconds"] < 60
        ticket = read_ticket(entry["ticket"])
        assert Path(entry["ticket"]).parent == Path("compare/lenet-300-100")
        assert ticket.metrics["hard"] == entry["hard"]
        assert ticket.recipe["training"]["steps"] == 2
        assert ticket.recipe["training"]["seed"] == ticket.origin["init"]["seed"] == entry["seed"]
        assert ticket.masks.density == pytest.approx(1 - entry["sparsity"], abs=1e-5)
        assert slt_compress.verify(ticket.path, in_process=True).ok
    again = parse_recipe(read_ticket(rows[0]["ticket"]).recipe)
    alone = slt_compress.search("lenet-300-100", recipe=again)
    assert alone.metrics["hard"] == rows[0]["hard"]
    summary = content["summary"]
    assert [(e["method"], e["sparsity"]) for e in summary] == [k[:2] for k in keys(rows)[:4]]
    for entry in summary:
        assert set(entry) == {"method", "sparsity", "seeds", "mean", "std", "metric"}
        of_it = [r for r in rows if keys([r])[0][:2] == (entry["method"], entry["sparsity"])]
        values = [r["hard"]["accuracy"] for r in of_it]
        assert (entry["seeds"], entry["metric"]) == (2, "accuracy")
        assert entry["mean"] == pytest.approx(mean(values))
        assert entry["std"] == pytest.approx(stdev(values))
    kept = json.loads(Path("compare/lenet-300-100/compare.json").read_text())
    assert (kept["rows"], kept["summary"]) == (rows, summary)


def test_a_table_and_a_plot(capsys, searched):
    arguments = ["--methods", "relaxed,magnitude", "--seeds", "2"]
    out, err = run(capsys, *arguments, "--target-sparsity", "0.5,0.75,0.9")
    assert err == ""
    lines = [[cell.strip() for cell in line.split("│")] for line in out.splitlines()]
    assert ["", "relaxed", "0.75", "0.7550", "± 0.0071", "2", "0.0", ""] in lines
    assert out.splitlines()[-1] == "rows and tickets: compare/lenet-300-100"
    plot = out[out.index("accuracy against sparsity") :].splitlines()
    assert "0.905" in plot[1]
    assert plot[1].rstrip().endswith("▲"), "the highest mean stands at the right of the top"
    assert "0.505" in plot[14]
    assert "┤▲·" in plot[14]
    assert plot[16].split() == ["0.5", "0.75", "0.9"]
    assert [line.split() for line in plot[17:19]] == [["●", "relaxed"], ["▲", "magnitude"]]
    assert all(len(line) < 80 for line in plot)
    out, _ = run(capsys, *arguments, "--target-sparsity", "0.5")
    assert "against" not in out
    assert out.splitlines()[-1] == "rows and tickets: compare/lenet-300-100-2"
    out, _ = run(capsys, "--methods", "relaxed", "--target-sparsity", "0.5", "--seeds", "1")
    assert out.count("±") == 1, "one seed has no spread"


def test_progress_is_a_line_for_each_search_on_stderr(capsys, searched):
    with pytest.raises(SystemExit):
        main([*LENET, "--methods", "relaxed,random", "--seeds", "1", "--json"])
    out, err = capsys.readouterr()
    assert len(json.loads(out)["rows"]) == 2
    events = [json.loads(line) for line in err.splitlines()]
    assert {event["event"] for event in events} == {"row"}
    assert events[0]["text"].startswith("[1/2] relaxed at 0.9, seed 0: accuracy 0.9000, ")
    assert events[1]["text"].startswith("[2/2] random at 0.9, seed 0: ")


def test_what_was_finished_is_not_searched_again(capsys, searched, monkeypatch):
    arguments = ["--methods", "relaxed,magnitude", "--target-sparsity", "0.5", "-o", "mine"]
    with monkeypatch.context() as patch:
        failing(patch, "magnitude", KeyboardInterrupt())
        with pytest.raises(SystemExit):
            main([*LENET, *FAST, *arguments])
    capsys.readouterr()
    assert keys(json.loads(Path("mine/compare.json").read_text())["rows"]) == [("relaxed", 0.5, 0)]
    assert [recipe.method["name"] for recipe in searched] == ["relaxed"]
    content = compared(capsys, *arguments)
    assert len(content["rows"]) == 6
    assert len(searched) == 6
    assert compared(capsys, *arguments) == content
    assert len(searched) == 6
    fewer = compared(capsys, *arguments[2:], "--methods", "random", "--seeds", "1")
    assert keys(fewer["rows"]) == [("random", 0.5, 0)]
    assert len(searched) == 7
    kept = json.loads(Path("mine/compare.json").read_text())["rows"]
    assert set(keys(kept)) == {*keys(content["rows"]), ("random", 0.5, 0)}


def test_a_ticket_without_its_row_is_left_alone(capsys):
    arguments = ["--methods", "magnitude", "--seeds", "1", "-o", "mine"]
    first = compared(capsys, *arguments)["rows"][0]
    Path("mine/compare.json").unlink()
    second = compared(capsys, *arguments)["rows"][0]
    assert (first["ticket"], second["ticket"]) == ("mine/magnitude-0.9-0", "mine/magnitude-0.9-0-2")
    assert first["hard"] == second["hard"]
    assert {path.name for path in Path("mine").iterdir()} == {
        "compare.json", "magnitude-0.9-0", "magnitude-0.9-0-2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SltError("the loss is nan at step 2"), "the loss is nan at step 2"),
        (RuntimeError("out of\n  memory"), "RuntimeError: out of memory"),
    ],
)
def test_a_method_that_fails_is_a_row(capsys, searched, monkeypatch, error, message):
    arguments = ["--methods", "relaxed,random,magnitude", "--seeds", "2", "-o", "mine"]
    with monkeypatch.context() as patch:
        failing(patch, "random", error)
        content = compared(capsys, *arguments, code=1)
        out, _ = run(capsys, *arguments, code=1)
    assert len(content["rows"]) == 6
    failed = [entry for entry in content["rows"] if "error" in entry]
    assert keys(failed) == [("random", 0.9, 0), ("random", 0.9, 1)]
    for entry in failed:
        assert (entry["error"], entry["hard"], entry["ticket"]) == (message, None, None)
    summary = {entry["method"]: entry for entry in content["summary"]}
    assert (summary["random"]["seeds"], summary["random"]["mean"]) == (0, None)
    assert summary["magnitude"]["seeds"] == 2
    assert f"failed: random at 0.9, seed 1: {message}" in out
    assert all("error" not in entry for entry in compared(capsys, *arguments)["rows"])
    assert len(searched) == 6


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_nothing_but_failures(capsys, searched, monkeypatch, json_too):
    failing(monkeypatch, "random", SltError("no"))
    out, _ = run(capsys, "--methods", "random", "--target-sparsity", "0.5,0.9", *json_too, code=1)
    assert "against" not in out
    assert ("null" if json_too else "failed") in out


def test_a_source_or_data_set_that_is_not_there_ends_it(capsys, searched, monkeypatch):
    failing(monkeypatch, "random", SourceError("./nope is not there"))
    out, err = run(capsys, "--methods", "relaxed,random", code=1)
    assert (out, err) == ("", "error: ./nope is not there\n")
    kept = json.loads(Path("compare/lenet-300-100/compare.json").read_text())["rows"]
    assert keys(kept) == [("relaxed", 0.9, 0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "3"], "recipe.training.steps was 2 and is 3"),
        (["--set", "scope=layer"], "recipe.scope was 'global' and is 'layer'"),
        (["--set", "method.sigma=0.3"], "methods.relaxed.sigma was None and is 0.3"),
    ],
)
def test_a_folder_of_another_comparison_is_refused(capsys, searched, arguments, message):
    run(capsys, "--methods", "relaxed", "-o", "mine")
    before = Path("mine/compare.json").read_bytes()
    _, err = run(capsys, "--methods", "relaxed", "-o", "mine", *arguments, code=1)
    assert message in err
    assert "choose another folder" in err
    assert Path("mine/compare.json").read_bytes() == before
    assert len(searched) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "object is expected"),
        ("{", "not valid JSON"),
        ("{}", "damaged at rows"),
        ('{"rows": [{"method": 3}]}', "damaged at rows.0"),
        ('{"rows": [], "methods": 3}', None),
    ],
)
def test_a_damaged_file_is_refused(capsys, searched, content, message):
    Path("mine").mkdir()
    Path("mine/compare.json").write_text(content)
    _, err = run(capsys, "--methods", "random", "-o", "mine", code=1 if message else 0)
    assert (message or "") in err
    assert "Traceback" not in err


def test_a_place_that_cannot_be_written_is_refused_before_the_first_search(capsys, searched):
    Path("file").write_text("")
    for place in ("file", "file/below"):
        _, err = run(capsys, "-o", place, code=1)
        assert "choose another folder" in err
    assert searched == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "relaxed,magic"], "magic"),
        (["--methods", "relaxed,,random"], "empty entry"),
        (["--target-sparsity", "0.9,much"], "is not a number"),
        (["--target-sparsity", "0.9,1.0"], "target_sparsity must be in [0, 1), not 1.0"),
        (["--seeds", "0"], "--seeds"),
        (["--epochs", "1"], "not both"),
        (["--set", "nope=1"], "unknown key nope"),
    ],
)
def test_usage_errors(capsys, searched, arguments, message):
    out, err = run(capsys, *arguments, code=2)
    assert out == ""
    assert message in err
    assert searched == []
    assert not Path("compare").exists()


def test_options_go_to_the_method_of_that_name():
    recipe = Recipe(method={"name": "relaxed", "sigma": 0.3}, training=Training(seed=7))
    plan = planned(recipe, ["relaxed", "magnitude", "relaxed"], [0.5, 0.9, 0.5], 2)
    assert [(r.method["name"], r.target_sparsity, r.training.seed) for r in plan] == [
        (method, sparsity, seed)
        for seed in (7, 8)
        for sparsity in (0.5, 0.9)
        for method in ("relaxed", "magnitude")
    ]
    assert plan[0].method_instance() == Relaxed(sigma=0.3)
    assert plan[1].method == {"name": "magnitude"}
    own = planned(recipe, [Relaxed(sigma=0.7)], [0.5], 1)[0]
    assert own.method_instance() == Relaxed(sigma=0.7)
    assert replace(own, method={}) == replace(plan[0], method={})


@pytest.mark.parametrize(
    ("recipe", "methods", "sparsities", "seeds", "message"),
    [
        (Recipe(), [], [0.5], 1, "at least one method"),
        (Recipe(), ["random"], [], 1, "at least one"),
        (Recipe(), ["random"], [0.5], 0, "at least one"),
        (Recipe(), ["relaxed", Relaxed()], [0.5], 1, "compared only once"),
        (Recipe(training=Training(max_time=5.0)), ["random"], [0.5], 1, "training.max_time=null"),
    ],
)
def test_a_plan_that_cannot_be(recipe, methods, sparsities, seeds, message):
    with pytest.raises(RecipeError, match=message):
        planned(recipe, methods, sparsities, seeds)


@pytest.mark.parametrize(
    ("metrics", "metric"),
    [
        ({"loss": 1.0, "kl": 0.2, "agreement": 0.9, "accuracy": 0.8}, "accuracy"),
        ({"kl": 0.2, "agreement": 0.9}, "agreement"),
        ({"loss": 1.0, "pearson": 0.5}, "pearson"),
        ({"loss": 1.0, "perplexity": 2.7}, "perplexity"),
        ({"loss": 1.0}, "loss"),
    ],
)
def test_the_metric_is_the_tasks_own(metrics, metric):
    comparison = Comparison(folder=Path(), rows=(row(**metrics), row(seed=1, error="no")))
    (entry,) = comparison.summary()
    assert (entry["metric"], entry["mean"]) == (metric, metrics[metric])
    assert (entry["seeds"], entry["std"]) == (1, None)
    assert comparison.failed


@pytest.mark.parametrize("value", [None, float("nan"), {}, "x" * 5000])
def test_a_changed_setting_is_named_whatever_it_is(value: Any) -> None:
    then = {"recipe": {"a": 1, "more": value}, "methods": {}}
    told = _difference(then, {"recipe": {"a": 1}, "methods": {}})
    assert told.startswith("recipe.more was ")
    assert len(told) < 200
    assert _difference({"recipe": {"a": 1}}, then).startswith(("methods was", "recipe.more was"))
