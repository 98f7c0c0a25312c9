"""The hub's own client against a hub on loopback: snapshots, refusals, the cache, data sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from datasets import Dataset
from hub import COMMIT, Hub
from huggingface_hub import constants
from timm.models import save_for_hf
from transformers import ViTConfig, ViTForImageClassification

from slt_compress.checkpoints import open_checkpoint, origin_record, reopen
from slt_compress.errors import SourceError

OPEN = """
import json, sys, warnings
warnings.simplefilter("error")
from slt_compress.checkpoints import open_checkpoint, origin_record, reopen
from slt_compress.errors import SltError
out = []
for source, options in json.loads(sys.argv[1]):
    try:
        c = open_checkpoint(source, **options)
        again = reopen(origin_record(c))
        same = all(bool((v == again.module.state_dict()[k]).all())
                   for k, v in c.module.state_dict().items())
        out.append({"kind": c.kind, "revision": c.revision, "task": c.task, "family": c.family,
                    "license": c.license, "classes": c.classes, "same": same,
                    "folder": c.folder and str(c.folder), "sum": float(
                        sum(p.detach().double().sum() for p in c.module.parameters()))})
    except SltError as error:
        out.append({"error": str(error), "type": type(error).__name__})
print(json.dumps(out))
"""
VIT = "google/vit-base-patch16-224"
DATA = """
import json, datasets
datasets.disable_progress_bars()
found = datasets.load_dataset("uoft-cs/cifar10")
print(json.dumps({name: [len(part), part.column_names] for name, part in found.items()}))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "newt"},
        label2id={"cat": 0, "dog": 1, "newt": 2},
    )
    torch.manual_seed(0)
    vit = ViTForImageClassification(config)
    vit.save_pretrained(root / "vit")
    (root / "vit" / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# ViT\n")
    (root / "vit" / "modeling.py").write_text("raise SystemExit('never run')\n")
    vit.save_pretrained(root / "sharded", max_shard_size="10KB")
    assert len(list((root / "sharded").glob("model-*.safetensors"))) > 1
    (root / "pickled").mkdir()
    (root / "pickled" / "config.json").write_text((root / "vit" / "config.json").read_text())
    (root / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    net = timm.create_model("resnet10t", num_classes=3)
    save_for_hf(net, root / "timm", safe_serialization=True)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def hub(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    data = tmp_path_factory.mktemp("cifar10")
    for split, rows in (("train", 6), ("test", 3)):
        table = Dataset.from_dict({"value": range(rows), "label": [i % 2 for i in range(rows)]})
        (data / "plain_text").mkdir(exist_ok=True)
        table.to_parquet(data / "plain_text" / f"{split}-00000-of-00001.parquet")
    with Hub(gated={"meta/closed"}) as hub:
        hub.add_model("google/vit-base-patch16-224", models["vit"])
        hub.add_model("some/sharded", models["sharded"])
        hub.add_model("some/pickled", models["pickled"])
        hub.add_model("meta/closed", models["vit"])
        hub.add_model("timm/xyz", models["timm"])
        hub.add_dataset("uoft-cs/cifar10", data)
        yield hub


def run(program: str, url: str, home: Path, *arguments: str) -> object:
    """What `program` prints as JSON, with the hub at `url` and a cache of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # neither library may write to the user's terminal
    return json.loads(done.stdout)


def test_sources_of_a_hub(hub: Hub, models: dict[str, Path], tmp_path: Path) -> None:
    asked = [
        ["google/vit-base-patch16-224", {}],
        ["some/sharded", {"revision": "main"}],
        ["timm/xyz", {}],
        ["google/vit-base-patch16-224", {"revision": "v9"}],
        ["nobody/nothing", {}],
        ["meta/closed", {}],
        ["some/pickled", {}],
        ["not a valid id", {}],
    ]
    hub.requests.clear()
    found = run(OPEN, hub.url, tmp_path, json.dumps(asked))
    assert isinstance(found, list)
    vit, sharded, net, revision, unknown, gated, pickled, invalid = found
    assert vit["kind"] == "hub"
    assert vit["revision"] == COMMIT
    assert vit["task"] == "image-classification"
    assert vit["classes"] == ["cat", "dog", "newt"]
    assert vit["license"] == "mit"
    assert vit["same"]
    assert vit["sum"] == sharded["sum"] != 0
    assert (net["family"], net["kind"], net["same"]) == ("timm", "hub", True)
    assert "no revision 'v9'" in revision["error"]
    assert "neither a local path nor on the hub" in unknown["error"]
    assert "gated" in gated["error"]
    assert "HF_TOKEN" in gated["error"]
    assert "pytorch_model.bin" in pickled["error"]
    assert "save_pretrained" in pickled["error"]
    assert "valid hub id" in invalid["error"]
    fetched = "\n".join(hub.requests)
    assert "modeling.py" not in fetched  # code is not even downloaded
    assert "GET /some/pickled" not in fetched  # refused by its list of files


def connect(patch: pytest.MonkeyPatch, url: str, home: Path, *, offline: bool = False) -> None:
    """Point the client of this process at `url`, with a cache of its own."""
    patch.setattr(constants, "ENDPOINT", url)
    place = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)


def test_random_init_downloads_no_weights(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, hub.url, tmp_path)
    hub.requests.clear()
    random = open_checkpoint(VIT, init="random")
    assert (random.kind, random.revision) == ("random", COMMIT)
    assert any("config.json" in request for request in hub.requests)
    assert not any("safetensors" in request for request in hub.requests)


def test_cache_serves_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, hub.url, tmp_path)
    open_checkpoint(VIT, init="random")
    connect(monkeypatch, hub.url, tmp_path, offline=True)
    assert open_checkpoint(VIT, init="random").revision == COMMIT
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set"):
        open_checkpoint(VIT)
    connect(monkeypatch, hub.url, tmp_path)
    online = open_checkpoint(VIT)
    connect(monkeypatch, hub.url, tmp_path, offline=True)
    hub.requests.clear()
    offline = open_checkpoint(VIT)
    assert hub.requests == []
    assert offline.revision == online.revision == COMMIT
    for name, value in online.module.state_dict().items():
        assert torch.equal(value, offline.module.state_dict()[name])


def test_weights_can_be_read_from_another_place(
    hub: Hub, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, hub.url, tmp_path)
    record = origin_record(open_checkpoint(VIT))
    hub.requests.clear()
    for place in (models["vit"], models["vit"] / "model.safetensors", "some/sharded"):
        again = reopen(json.loads(json.dumps(record)), override=place)
        assert again.source == VIT
        assert again.revision == COMMIT
    assert any("model-00001-of" in request for request in hub.requests)


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "http://127.0.0.1:9", tmp_path)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:9 cannot be reached"):
        open_checkpoint(VIT)


def test_data_sets_come_through_the_same_hub(hub: Hub, tmp_path: Path) -> None:
    found = run(DATA, hub.url, tmp_path)
    assert found == {"train": [6, ["value", "label"]], "test": [3, ["value", "label"]]}
