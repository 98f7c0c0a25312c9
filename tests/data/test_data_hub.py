"""Data sets of the hub, read by the real client from a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as papq
import pytest
from data_sets import PLAIN, png, shard_images, write_table
from hub import Hub

from slt_compress.data import DataOptions, open_data
from slt_compress.data.hub import read_hub
from slt_compress.errors import DataError

PROGRAM = """
import json, sys
from slt_compress.data import DataOptions, open_data
from slt_compress.errors import DataError
found = {}
for spec in sys.argv[1:]:
    try:
        raw = open_data(spec, DataOptions())
        found[spec] = [raw.test_split, len(raw.splits["train"]), raw.classes, len(raw.notes)]
    except DataError as error:
        found[spec] = str(error)
print(json.dumps(found))
"""
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: train, path: raw/train.parquet}
  - {split: test, path: raw/test.parquet}
---
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return shard_images(tmp_path / "set")


def test_hub_ids(images: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_table(tmp_path / "text" / "raw" / f"{split}.parquet", {"text": [split] * 3})
    (tmp_path / "text" / "README.md").write_text(CARD)
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit('this code was run')")
    expected: dict[str, object] = {
        "uoft-cs/cifar10": ["test", 43, ["a", "b"], 0],
        "timm/mini-imagenet": ["test", 43, ["a", "b"], 1],  # streamed, and said so
        "Salesforce/wikitext:wikitext-2-raw-v1": ["test", 3, None, 0],
    }
    refused = {
        "Salesforce/wikitext:nope": "'nope' not found. Available: ['wikitext-2-raw-v1']",
        "no/where": "no such data set on the hub (--dataset takes digits",
        "some/script": "which is never done; convert it to parquet",
        "some/gated": "it is gated",
    }
    with Hub() as hub:
        hub.add_dataset("uoft-cs/cifar10", images)
        hub.add_dataset("timm/mini-imagenet", images)
        hub.add_dataset("Salesforce/wikitext", tmp_path / "text")
        hub.add_dataset("some/script", tmp_path / "script")
        hub.add_dataset("some/gated", images)
        hub.gated.add("some/gated")
        found = run([*expected, *refused], hub.url, tmp_path / "home")
    assert {spec: found[spec] for spec in expected} == expected
    for spec, sentence in refused.items():
        assert sentence in str(found[spec])
        assert "\n" not in str(found[spec])


def run(specs: list[str], url: str, home: Path) -> dict[str, object]:
    """Open each in a process of its own; nothing else may be printed."""
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *specs],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("hub_cache")
def test_the_datasets_library_reads_and_streams(images: Path) -> None:
    whole, notes = read_hub(str(images), PLAIN, stream=False)
    assert {name: len(rows) for name, rows in whole.items()} == {"train": 43, "test": 9}
    assert notes == ()
    part, notes = read_hub(str(images), DataOptions(limit_train=10), stream=True)
    assert {name: len(rows) for name, rows in part.items()} == {"train": 10, "test": 9}
    assert part["train"].features == whole["train"].features
    # Five of each file, so that files sorted by class do not leave classes out.
    shades = [stored["bytes"] for stored in part["train"].column("picture")]
    assert shades == [png(shade) for shade in [*range(5), *range(30, 35)]]
    assert "10 rows of train" in notes[0]


@pytest.mark.usefixtures("hub_cache")
def test_no_network_names_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"hub cannot be reached \(--dataset takes digits"
    ) as caught:
        open_data("timm/mini-imagenet", PLAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.skipif(
    int(datasets.__version__.partition(".")[0]) < 5, reason="datasets before 5 cuts no files"
)
def test_streaming_a_file_sorted_by_class(tmp_path: Path) -> None:
    folder = tmp_path / "sorted"
    table = write_table(folder / "train.parquet", {"text": ["x"] * 60, "label": [*range(6)] * 10})
    ordered = papq.read_table(table).sort_by("label")
    papq.write_table(ordered, table, row_group_size=10)
    part, _ = read_hub(str(folder), DataOptions(limit_train=12), stream=True)
    assert part["train"].column("label") == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
