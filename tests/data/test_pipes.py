"""A pipe where data is read from: a sentence, never a wait for a writer."""

from __future__ import annotations

import os

import pytest
from data_sets import png

from slt_compress.data.audio import open_sound
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
