"""A pipe where data is read from: a sentence, never a wait for a writer."""

from __future__ import annotations

import json
import os

import datasets
import pytest
from data_sets import png

from slt_compress.data.audio import open_sound
from slt_compress.data.hub import read_saved
from slt_compress.data.images import open_image
from slt_compress.data.local import read_path
from slt_compress.data.tables import READERS
from slt_compress.errors import DataError

IRREGULAR = "not a regular file"


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_in_the_place_of_a_table(tmp_path, suffix):
    os.mkfifo(tmp_path / f"train{suffix}")
    with pytest.raises(DataError, match=IRREGULAR):
        read_path(tmp_path, "set")


@pytest.mark.parametrize("suffix", sorted(READERS))
def test_in_the_place_of_the_data_set(tmp_path, suffix):
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(DataError, match="set is a pipe"):
        read_path(tmp_path / f"x{suffix}", "set")


def test_in_the_place_of_a_metadata_table(tmp_path):
    (tmp_path / "0.png").write_bytes(png((1, 2, 3), (4, 4)))
    os.mkfifo(tmp_path / "metadata.csv")
    with pytest.raises(DataError, match=IRREGULAR):
        read_path(tmp_path, "set")


OPENED = {
    "image": lambda stored: open_image(stored, "set"),
    "sound": lambda stored: open_sound(stored, 8_000, 1.0, "set"),
}


@pytest.mark.parametrize("kind", sorted(OPENED))
def test_in_the_place_of_a_stored_file(tmp_path, kind):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(DataError, match=IRREGULAR):
        OPENED[kind]({"bytes": None, "path": str(tmp_path / "x")})


@pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "other.txt"])
def test_in_a_saved_data_set(tmp_path, name):
    saved(tmp_path / "set")
    (tmp_path / "set" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "set" / name)
    with pytest.raises(DataError, match="not a regular file of this folder"):
        read_saved(tmp_path / "set", "set")


def saved(folder, **columns):
    columns = columns or {"text": ["a", "b"], "label": [0, 1]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))


def edited(file, edit):
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("kind", ["file", "split", "link"])
def test_a_saved_data_set_opens_nothing_outside_its_folder(tmp_path, kind):
    saved(tmp_path / "mine")
    saved(tmp_path / "set" / "train")
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert len(read_saved(tmp_path / "set", "set")["train"]) == 2
    shard = "data-00000-of-00001.arrow"
    if kind == "file":
        outside = f"../../mine/{shard}"
        edited(tmp_path / "set" / "train" / "state.json",
               lambda content: content["_data_files"][0].update(filename=outside))  # fmt: skip
    elif kind == "split":
        edited(tmp_path / "set" / "dataset_dict.json",
               lambda content: content.update(splits=["../mine"]))  # fmt: skip
    else:
        (tmp_path / "set" / "train" / shard).unlink()
        (tmp_path / "set" / "train" / shard).symlink_to(tmp_path / "mine" / shard)
    with pytest.raises(DataError, match=r"beside it|of this folder"):
        read_saved(tmp_path / "set", "set")


def test_images_of_a_saved_data_set_lie_in_its_folder(tmp_path):
    (tmp_path / "mine.png").write_bytes(png((1, 2, 3), (4, 4)))
    saved(tmp_path / "set", image=[{"bytes": None, "path": str(tmp_path / "mine.png")}])
    with pytest.raises(DataError, match="outside of its own folder"):
        read_saved(tmp_path / "set", "set")
