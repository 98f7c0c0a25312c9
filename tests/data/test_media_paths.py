"""Images that a table names by path: only those under its own folder are opened."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as papq
import pytest
from data_sets import png

from slt_compress.data.local import read_path
from slt_compress.errors import DataError


def table(folder, paths):
    folder.mkdir(parents=True, exist_ok=True)
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}}
    columns = {"image": pa.array([{"bytes": None, "path": path} for path in paths], stored)}
    made = pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    papq.write_table(made, folder / "train.parquet")
    return folder


def test_a_path_under_the_folder_is_read(tmp_path):
    (tmp_path / "x" / "images").mkdir(parents=True)
    (tmp_path / "x" / "images" / "1.png").write_bytes(png((1, 2, 3), (4, 4)))
    rows = read_path(table(tmp_path / "x", ["images/1.png"]), "x")[0]["train"]
    assert rows.column("image")[0]["path"] == str(tmp_path / "x" / "images" / "1.png")


@pytest.mark.parametrize("kind", ["absolute", "parent", "link"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, kind):
    (tmp_path / "mine.png").write_bytes(png((1, 2, 3), (4, 4)))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "link.png").symlink_to(tmp_path / "mine.png")
    named = {"absolute": str(tmp_path / "mine.png"), "parent": "../mine.png", "link": "link.png"}
    with pytest.raises(DataError, match="outside of its own folder"):
        read_path(table(tmp_path / "x", [named[kind]]), "x")


def test_a_path_to_nothing_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="which is not there"):
        read_path(table(tmp_path / "x", ["nothing.png"]), "x")
