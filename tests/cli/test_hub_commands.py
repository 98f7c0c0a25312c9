"""The commands of the README against a hub on loopback, through the hub's own client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pico
import pytest
from data_sets import image_table
from hub import COMMIT, Hub

VIT = "google/vit-base-patch16-224"
NET = "timm/test_convnext.pico"
ROOT = Path(__file__).parents[2]
# three of ImageNet's classes, by the names that timm/mini-imagenet gives them
SYNSETS = ["n01532829", "n01558993", "n01704323"]
FAST = ["--steps", "2", "--batch-size", "4", "--set", "evaluation.limit=6", "--quiet"]


@pytest.fixture(scope="module")
def hub(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    vit = pico.save_vit(root / "vit", [f"LABEL_{index}" for index in range(1000)])
    for split, count in (("train", 24), ("test", 9), ("validation", 3)):
        table = root / "mini" / "data" / f"{split}-00000-of-00001.parquet"
        table.parent.mkdir(parents=True, exist_ok=True)
        image_table(table, count, SYNSETS)
    with Hub() as hub:
        hub.add_model(VIT, vit)
        hub.add_model(NET, checkpoints["convnext"])
        hub.add_dataset("timm/mini-imagenet", root / "mini")
        yield hub


class Terminal:
    """A user's shell in an empty folder, with a hub cache of its own."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        self.environment = {
            **kept,
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
        }

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "slt_compress", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def python(self, code: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=self.folder, env=self.environment,
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_a_vit_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    shell = Terminal(tmp_path, hub.url)
    out, err = shell.run("search", VIT, "--target-sparsity", "0.9", *FAST)
    ticket = "tickets/google-vit-base-patch16-224-relaxed-0.9"
    assert (out, err) == (f"{ticket}\n", "")
    recorded = json.loads((tmp_path / ticket / "ticket.json").read_text())
    assert recorded["origin"]["revision"] == COMMIT
    assert recorded["extra"]["data"]["spec"] == "timm/mini-imagenet"
    assert recorded["extra"]["data"]["labels_match"]

    out, err = shell.run("export", "--format", "sparse-csr")
    export = f"exports/{ticket.removeprefix('tickets/')}-sparse-csr"
    assert out == f"{export}\n"
    assert f'slt_compress.load("{export}")' in err
    assert "bytes" in err
    marker = json.loads((tmp_path / export / "config.json").read_text())["quantization_config"]
    assert marker["quant_method"] == "slt-compress"
    assert (
        "base_model: google/vit-base-patch16-224" in (tmp_path / export / "README.md").read_text()
    )

    out, err = shell.run("report", "--json")
    report = json.loads(out)
    figures = report["sparsity"]
    assert figures["kept"] == round(0.1 * figures["gated"])
    assert set(report["metrics"]["hard"]) == {"accuracy", "loss", "agreement", "kl"}
    assert err == ""

    out, err = shell.run("verify", "--json", export)
    assert json.loads(out)["ok"]
    assert err == ""


def test_a_timm_model_from_the_hub_that_is_gone_later(hub: Hub, tmp_path: Path) -> None:
    shell = Terminal(tmp_path, hub.url)
    out, err = shell.run("search", NET, "--target-sparsity", "0.5", "--method", "magnitude", *FAST)
    assert out == "tickets/timm-test_convnext.pico-magnitude-0.5\n"
    assert err.startswith("warning: The labels of timm/mini-imagenet are not used")
    assert err.count("\n") == 1
    shell.environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}
    out, err = shell.run("verify", "--json", code=1)
    assert out == ""
    assert "cannot be reached" in err
    assert "--origin" in err
    assert len(err.splitlines()) == 1


OPEN = """
import slt_compress, transformers
def total(model):
    return sum(float(t.double().abs().sum()) for t in model.state_dict().values())
by_transformers = transformers.AutoModelForImageClassification.from_pretrained
names = ("ticket", "auto", "mask")
found = [total(slt_compress.load("org/" + name, device="cpu")) for name in names]
found += [total(by_transformers("org/" + name)) for name in names[1:]]
assert len(set(found)) == 1, found
try:
    slt_compress.load("org/nothing")
except slt_compress.SltError as error:
    assert "neither a local path nor on the hub" in str(error), error
"""


LOCAL = """
import slt_compress
try:
    slt_compress.load("org/local")
except slt_compress.SltError as error:
    assert "was downloaded, and names the local path" in str(error), error
else:
    raise SystemExit("a downloaded ticket was opened with a local origin")
assert slt_compress.load("org/local", origin=__import__("sys").argv[1])
"""


def test_exports_on_the_hub_open_by_their_id(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shell = Terminal(tmp_path, "")
    with Hub() as hub:
        shell.environment["HF_ENDPOINT"] = hub.url
        hub.add_model("org/vit", checkpoints["vit"])
        search = ["--dataset", "digits", "--method", "magnitude", *FAST]
        shell.run("search", "org/vit", "-o", "ticket", *search)
        hub.add_model("org/ticket", tmp_path / "ticket")
        for format in ("auto", "mask"):
            shell.run("export", "ticket", "--format", format, "-o", format)
            hub.add_model(f"org/{format}", tmp_path / format)
        shell.python(OPEN)
        shell.run("search", str(checkpoints["vit"]), "-o", "local", *search)
        hub.add_model("org/local", tmp_path / "local")
        shell.python(LOCAL, str(checkpoints["vit"]))


def test_tickets_and_exports_are_pushed(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shell = Terminal(tmp_path, "")
    shell.environment["HF_TOKEN"] = "hf_test"
    with Hub(uploads=tmp_path / "hub") as hub:
        shell.environment["HF_ENDPOINT"] = hub.url
        out, err = shell.run(
            "search", str(checkpoints["vit"]), "--target-sparsity", "0.9", "--method", "magnitude",
            "--dataset", "digits", "-o", "ticket", "--push-to-hub", "me/ticket", *FAST,
        )  # fmt: skip
        assert out == "ticket\n"
        assert err.startswith("warning: The labels of digits are not used")
        assert err.splitlines()[1:] == [f"pushed to {hub.url}/me/ticket"]
        pushed = {file.name for file in (tmp_path / "hub" / "me" / "ticket").iterdir()}
        here = {file.name for file in (tmp_path / "ticket").iterdir()}
        assert pushed == here - {"run.json"}
        out, err = shell.run("export", "ticket", "--format", "auto", "-o", "auto",
                             "--push-to-hub", "me/auto")  # fmt: skip
        assert f"pushed to {hub.url}/me/auto" in err
        card = (tmp_path / "hub" / "me" / "auto" / "README.md").read_text()
        assert "tags:\n- slt-compress" in card
        for name in ("ticket", "auto"):
            for file in (tmp_path / "hub" / "me" / name).iterdir():
                assert file.read_bytes() == (tmp_path / name / file.name).read_bytes()
        shell.run("export", "ticket", "-o", "dense", "--push-to-hub", "no name", code=2)
        assert not (tmp_path / "dense").exists()
        # what the hub refuses leaves no repository, and the same command can be said again
        hub.is_full = True
        push = ("export", "ticket", "--format", "auto", "-o", "again", "--push-to-hub", "me/again")
        _, err = shell.run(*push, code=1)
        assert "could not be pushed" in err
        assert not (tmp_path / "hub" / "me" / "again").exists()
        shell.run(*push[:-1], "me/auto", code=1)  # one that has files stays
        assert (tmp_path / "hub" / "me" / "auto" / "README.md").exists()
        hub.is_full, before = False, len(hub.requests)
        shell.run(*push)
        commits = [request for request in hub.requests[before:] if "/commit/" in request]
        assert commits == ["POST /api/models/me/again/commit/main"]
        assert (tmp_path / "hub" / "me" / "again" / "README.md").exists()
    out, err = shell.run("export", "ticket", "-o", "dense", "--push-to-hub", "me/dense", code=1)
    assert out == ""
    assert "could not be pushed" in err
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert (tmp_path / "dense" / "model.safetensors").exists()
