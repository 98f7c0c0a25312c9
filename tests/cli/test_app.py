"""The command line as a user meets it: output, exit codes, one sentence for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from slt_compress.cli.app import main

LENET = ["search", "lenet-300-100", "--init", "random", "--dataset", "digits", "--quiet"]
FAST = ["--steps", "2", "--set", "evaluation.limit=20", "--set", "training.selections=1"]
REPORT = {"sparsity", "metrics", "controls", "layers", "skipped", "sizes"}


def run(capsys, *arguments, code=0):
    """stdout and stderr of one command; its exit code is checked."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return out, err


def refused(capsys, *arguments, code=1):
    """The one sentence that refuses a command."""
    out, err = run(capsys, *arguments, code=code)
    assert out == ""
    if code == 1:
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
    return err


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A ticket and both exports, made by commands; tests copy what they change."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ([*LENET, *FAST], ["export"], ["export", "--format", "sparse-csr"]):
            with pytest.raises(SystemExit) as ended:
                main(command)
            assert ended.value.code == 0
    return folder


@pytest.fixture
def ticket(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Path("tickets/lenet-300-100-relaxed-0.9")


def test_search_prints_the_path_alone(capsys, tmp_path):
    out, err = run(capsys, *LENET, *FAST, "--target-sparsity", "0.75")
    assert (out, err) == ("tickets/lenet-300-100-relaxed-0.75\n", "")
    loud = [argument for argument in LENET if argument != "--quiet"]
    out, err = run(capsys, *loud, *FAST, "--target-sparsity", "0.75", "-o", "here/mine", "--json")
    found = json.loads(out)
    assert found["ticket"] == "here/mine"
    assert found.keys() >= REPORT
    assert found["sparsity"]["target"] == 0.75
    assert json.loads(err.splitlines()[-1])["title"] == "writing the ticket"
    assert refused(capsys, *LENET, "-o", "here/mine").endswith("choose another folder\n")


def test_report(capsys, ticket):
    out, _ = run(capsys, "report")
    for text in ("fc1.weight", "300×784", "26,620 of 266,200", "control: shuffled", "bias"):  # noqa: RUF001
        assert text in out
    out, err = run(capsys, "report", ticket, "--json")
    assert err == ""
    found = json.loads(out)
    assert found.keys() >= REPORT
    assert found["sparsity"].items() >= {
        "target": 0.9, "achieved": 0.9, "kept": 26620, "gated": 266200, "parameters": 266610,
    }.items()  # fmt: skip
    assert set(found["metrics"]) == {"dense", "hard", "soft"}
    assert set(found["controls"]) == {"random", "magnitude", "shuffled"}
    assert set(found["layers"][0]) == {
        "name", "shape", "total", "kept", "sparsity", "flips"
    }  # fmt: skip
    assert set(found["skipped"]) == {"fc1.bias", "fc2.bias", "fc3.bias"}
    assert found["sizes"]["sparse-csr"] < found["sizes"]["dense"]
    export = Path("exports") / f"{ticket.name}-dense"
    assert run(capsys, "report", export, "--json")[0] == out


def test_one_shot_methods_have_no_soft_metrics(capsys):
    out, _ = run(capsys, *LENET, *FAST, "--method", "random", "--json")
    found = json.loads(out)
    assert found["metrics"]["soft"] is None
    assert found["ticket"] == "tickets/lenet-300-100-random-0.9"
    assert "soft" in run(capsys, "report")[0]


def test_export_tells_what_it_wrote(capsys, ticket):
    out, err = run(capsys, "export", "--format", "sparse-csr", "-o", "out", "--json")
    found = json.loads(out)
    assert found["path"] == "out"
    assert found["bytes"] == Path("out/weights.slt.safetensors").stat().st_size
    assert f"{found['bytes']:,} bytes" in err
    assert 'slt_compress.load("out")' in err
    assert "not empty" in refused(capsys, "export", "-o", "out")
    assert "not empty" in refused(capsys, "export")  # its default folder is there already
    Path("file").write_text("")
    assert "file" in refused(capsys, "export", "-o", "file")
    assert "file" in refused(capsys, "export", "-o", "file/below")
    assert "takes a ticket" in refused(capsys, "export", "out")


def test_verify(capsys, ticket):
    out, _ = run(capsys, "verify", "--json")
    found = json.loads(out)
    assert found["ok"]
    assert all(set(check) == {"name", "ok", "detail"} for check in found["checks"])
    assert (
        "bit-identical" in run(capsys, "verify", Path("exports") / f"{ticket.name}-sparse-csr")[0]
    )


def flip_bit(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_verify_finds_damage(capsys, ticket):
    flip_bit(ticket / "masks.safetensors", -1)
    out, err = run(capsys, "verify", ticket, "--json", code=1)
    found = json.loads(out)
    assert not found["ok"]
    assert "damaged" in found["checks"][0]["detail"]
    assert err == ""
    assert "FAILED" in run(capsys, "verify", ticket, code=1)[0]
    for format, name in (("sparse-csr", "weights.slt"), ("dense", "model")):
        export = Path("exports") / f"{ticket.name}-{format}"
        flip_bit(export / f"{name}.safetensors", -1)
        assert not json.loads(run(capsys, "verify", export, "--json", code=1)[0])["ok"]
    for command in ("report", "export"):
        assert "damaged" in refused(capsys, command, ticket)


def change(path, *keys, value):
    """Set a value deep in a JSON file; `...` deletes it."""
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def is_error(text):
    """Whether a command has ended with an error in one line, as words or as JSON."""
    return text.startswith(("error: ", '{"schema": "error-1", ')) and len(text.splitlines()) == 1


HOSTILE = [
    (["provenance"], ...),
    (["provenance"], []),
    (["provenance", "counts"], {"kept": "1"}),
    (["provenance", "budget"], {"density": "all"}),
    (["provenance", "gains"], {"fc1.weight": None}),
    (["provenance", "weights_hash"], 7),
    (["provenance", "environment"], ...),
    (["provenance", "origin"], {}),
    (["provenance", "origin", "config"], []),
    (["provenance", "origin", "init"], "random"),
    (["provenance", "origin", "init"], {"scheme": "magic", "seed": 0}),
    (["provenance", "origin", "family"], "os"),
    (["provenance", "origin", "source"], {"a": 1}),
    (["entries", "fc1.weight", "kept"], 3),
    (["entries", "fc1.weight", "kept"], "3"),
    (["entries", "fc1.weight", "shape"], [1, 2]),
]


@pytest.mark.parametrize(("keys", "value"), HOSTILE)
def test_a_hostile_artifact_never_ends_in_a_traceback(capsys, ticket, keys, value):
    export = Path("exports") / f"{ticket.name}-dense"
    change(export / "slt.json", *keys, value=value)
    harmless = keys[-1] == "source"  # a random init is made of its config and seed
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(export), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == (0 if harmless else 1)
    assert is_error(err) or json.loads(out)["ok"] == harmless


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["extra"], {}),
        (["extra", "dense_nbytes"], "many"),
        (["extra", "notes"], 5),
        (["sites", "fc1.weight", "dtype"], "load"),
        (["counts", "parameters"], 0),
        (["metrics", "hard"], {"accuracy": "high"}),
        (["controls"], {"random": 3}),
        (["budget"], {}),
        (["weights_hash"], ...),
        (["origin", "versions"], []),
        (["recipe"], {"training": 3}),
    ],
)
def test_a_hostile_ticket_never_ends_in_a_traceback(capsys, ticket, keys, value):
    change(ticket / "ticket.json", *keys, value=value)
    for command in (["report"], ["verify", "--json"], ["evaluate"], ["export", "-o", "out"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, str(ticket)])
        out, err = capsys.readouterr()
        if ended.value.code:
            assert ended.value.code == 1
            assert is_error(err) or json.loads(out)["ok"] is False


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["layers"], {}),
        (["layers", 0, "kept"], "x"),
        (["sizes"], {"dense": 0}),
        (["metrics"], 1),
        (["sparsity", "kept"], ...),
    ],
)
def test_a_damaged_report_is_refused(capsys, ticket, keys, value):
    export = Path("exports") / f"{ticket.name}-dense"
    change(export / "report.json", *keys, value=value)
    assert "report.json is damaged" in refused(capsys, "report", export)


def test_a_dense_export_cannot_lose_a_kept_weight(capsys, ticket):
    """Not even where the manifest's own hash is made to fit: the origin has no zero there."""
    import hashlib

    export = Path("exports") / f"{ticket.name}-dense"
    file = export / "model.safetensors"
    state = load_file(file)
    weight = state["fc2.weight"]
    weight[tuple(weight.nonzero()[0])] = 0.0
    save_file(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    change(export / "slt.json", "files", "model.safetensors", value=digest)
    out, _ = run(capsys, "verify", export, "--json", code=1)
    assert "count" in {check["name"] for check in json.loads(out)["checks"] if not check["ok"]}


def test_evaluate(capsys, ticket):
    out, err = run(capsys, "evaluate", "--json")
    found = json.loads(out)
    assert err == ""
    assert found["examples"] == 20  # the limit of the search
    hard = json.loads(run(capsys, "report", "--json")[0])["metrics"]["hard"]
    assert found["metrics"] == hard
    out, _ = run(capsys, "evaluate", "--set", "evaluation.limit=7", "--dataset", "digits", "--json")
    assert json.loads(out)["examples"] == 7
    assert "accuracy" in run(capsys, "evaluate", Path("exports") / f"{ticket.name}-dense")[0]
    assert "nowhere.csv" in refused(capsys, "evaluate", "--dataset", "nowhere.csv")


@pytest.mark.parametrize("command", ["report", "export", "verify", "evaluate"])
def test_no_ticket_yet(capsys, command):
    assert "slt-compress search" in refused(capsys, command)
    assert "nowhere" in refused(capsys, command, "nowhere")


def test_an_origin_that_is_gone(capsys, checkpoints, data_sets):
    folder = shutil.copytree(checkpoints["vit"], "vit")
    search = ["search", folder, "--dataset", data_sets["pictures"], "--batch-size", "4", "--quiet"]
    out, _ = run(capsys, *search, *FAST)
    assert out == "tickets/vit-relaxed-0.9\n"
    run(capsys, "export", "-o", "out")
    Path("vit").rename("elsewhere")
    for path in ("tickets/vit-relaxed-0.9", "out"):
        assert "--origin" in refused(capsys, "verify", path)
        run(capsys, "verify", path, "--origin", "elsewhere")
    assert "nothing" in refused(capsys, "verify", "out", "--origin", "./nothing")


def test_sources_that_cannot_be_opened(capsys, checkpoints, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    digits = ["--dataset", "digits", "--quiet"]
    assert "cannot be reached" in refused(capsys, "search", "no/body", *digits)
    assert "./nope" in refused(capsys, "search", "./nope", *digits)
    assert "--init random" in refused(capsys, "search", "lenet-300-100", *digits)
    Path("bare").mkdir()
    assert "no config.json" in refused(capsys, "search", "bare", *digits)
    folder = shutil.copytree(checkpoints["vit"], "corrupt")
    weights = Path(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    assert "model.safetensors" in refused(capsys, "search", folder, *digits)
    save_file({"fc1.weight": torch.zeros(2)}, "small.safetensors")
    assert "fc1" in refused(
        capsys, "search", "lenet-300-100", "--weights", "small.safetensors", *digits
    )
    assert "there is no" in refused(capsys, *LENET[:-3], "--dataset", "./none.csv", "--quiet")
    assert not Path("tickets").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(capsys):
    assert "cuda" in refused(capsys, *LENET, "--device", "cuda")


def test_places_that_cannot_be_written_are_refused_before_the_search(capsys):
    Path("file").write_text("")
    assert "file is not a folder" in refused(capsys, *LENET, "-o", "file")
    assert "file is not a folder" in refused(capsys, *LENET, "-o", "file/ticket")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nope"], "--nope"),
        (["--set", "nope=1"], "unknown key nope"),
        (["--set", "training.nope=1"], "training.nope"),
        (["--set", "training.lr=fast"], "training.lr"),
        (["--set", "training"], "KEY=VALUE"),
        (["--target-sparsity", "1.0"], "target_sparsity"),
        (["--target-sparsity", "-0.1"], "target_sparsity"),
        (["--target-sparsity", "much"], "--target-sparsity"),
        (["--method", "magic"], "magic"),
        (["--pattern", "plaid"], "plaid"),
        (["--scope", "cosmic"], "scope"),
        (["--objective", "fame"], "objective"),
        (["--precision", "int3"], "precision"),
        (["--steps", "0"], "steps"),
        (["--steps", "1", "--epochs", "1"], "not both"),
        (["--batch-size", "0"], "batch_size"),
    ],
)
def test_usage_errors_of_search(capsys, arguments, message):
    assert message in refused(capsys, "search", "lenet-300-100", *arguments, code=2)


def test_usage_errors_elsewhere(capsys, ticket):
    assert "known: dense, sparse-csr" in refused(capsys, "export", "--format", "zip", code=2)
    assert "smoke" in refused(capsys, "recipes", "show", "nope", code=2)
    assert "unknown key" in refused(capsys, "evaluate", "--set", "nope=1", code=2)
    refused(capsys, "frobnicate", code=2)
    Path("bad.yaml").write_text("training: {stepz: 3}\n")
    assert "training.stepz" in refused(capsys, *LENET, "--recipe", "bad.yaml")
    assert "no recipe" in refused(capsys, *LENET, "--recipe", "nope")


def test_recipes(capsys):
    out, _ = run(capsys, "recipes")
    assert out.splitlines() == sorted(out.splitlines())
    assert "smoke" in out
    shown, _ = run(capsys, "recipes", "show", "smoke")
    assert "target_sparsity: 0.5" in shown
    Path("mine.yaml").write_text(shown)
    arguments = ["search", "lenet-300-100", "--recipe", "mine.yaml", "--quiet", "--json"]
    out, _ = run(capsys, *arguments, "--set", "training.steps=3", "--steps", "2")
    recipe = json.loads(out)["recipe"]
    assert recipe["training"]["steps"] == 2  # flags override --set, which overrides the recipe
    assert recipe["training"]["batch_size"] == 32
    assert recipe["init"] == "random"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_interrupted(signum, tmp_path):
    loud = [argument for argument in LENET if argument != "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-m", "slt_compress", *loud, "--steps", "100000"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a suite in the background of a shell ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        while "searching: step 1/" not in (line := process.stderr.readline()):
            assert line, "the search has ended"
        time.sleep(0.2)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signum
    assert out == ""
    assert "Traceback" not in err
    folder = tmp_path / "tickets" / "lenet-300-100-relaxed-0.9.search"
    assert err.splitlines()[-1].startswith("interrupted: the same command goes on from here")
    assert f"--resume {folder.relative_to(tmp_path)}" in err
    # the progress of the search is saved, but no ticket is
    assert [path.name for path in tmp_path.glob("*/*")] == [folder.name]
    assert (folder / "state.safetensors").is_file()
