"""Kind E: image folders as people have them, compared with the plain builder of `datasets`."""

from __future__ import annotations

import gc
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from data_sets import PLAIN, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from slt_compress.data import RawData, open_data
from slt_compress.data.images import open_image
from slt_compress.errors import DataError


def put(root: Path, *names: str) -> Path:
    """Small images, each with bytes of its own."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jfif", ".jpg", ".jpeg", ".jpe"):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path, "JPEG")
        else:
            path.write_bytes(png((number, 1, 2)))
    return root


def ours(raw: RawData) -> Counter[tuple[str, str, str | None]]:
    """(split, file, class name) of every example."""
    found: Counter[tuple[str, str, str | None]] = Counter()
    for split, rows in raw.splits.items():
        for row, stored in enumerate(rows.rows.column(raw.columns.inputs[0])):
            number = None if rows.labels is None else int(rows.labels[row])
            name = raw.classes[number] if raw.classes and number is not None else None
            found[split, os.path.basename(os.path.dirname(stored["path"])) + "/"
                  + os.path.basename(stored["path"]), name] += 1  # fmt: skip
    return found


def theirs(root: Path) -> dict[str, Counter[tuple[str, str | None]]]:
    """What `datasets` reads: (file, class name) by split."""
    read: Any = datasets.load_dataset(str(root), streaming=True)
    found = {}
    for split, rows in read.items():
        column = rows.features.get("label")
        rows = rows.cast_column("image", datasets.Image(decode=False))
        found[str(split)] = Counter(
            (
                "/".join(Path(row["image"]["path"]).parts[-2:]),
                column.int2str(row["label"]) if column is not None else None,
            )
            for row in rows
        )
    return found


def by_split(raw: RawData) -> dict[str, Counter[tuple[str, str | None]]]:
    found: dict[str, Counter[tuple[str, str | None]]] = {}
    for (split, file, name), count in ours(raw).items():
        found.setdefault(split, Counter())[file, name] += count
    return found


CLASSES = st.lists(
    st.sampled_from(["cat", "dog", "Bird", "7", "10", "with space", "n01440764", "under_score"]),
    min_size=2, max_size=4, unique=True,
)  # fmt: skip
SUFFIXES = st.sampled_from([".png", ".jpg", ".JPEG", ".jfif", ".webp", ".bmp", ".ppm"])
CLUTTER = st.lists(
    st.sampled_from(
        [".ipynb_checkpoints/0.png", "__MACOSX/a/._0.png", "cat/._0.png", "Thumbs.db",
         ".DS_Store", "README.txt", "classes.txt", "dog/.ipynb_checkpoints/1.png"]
    ),
    unique=True, max_size=3,
)  # fmt: skip
LAYOUTS = st.sampled_from(
    [("",), ("train/", "test/"), ("training/", "valid/"), ("data/train/", "data/test/"),
     ("my_train/", "my_dev/"), ("train-2/", "evaluation/")]
)  # fmt: skip
TESTS = {"test", "validation"}


@settings(
    max_examples=25, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(LAYOUTS, CLASSES, SUFFIXES, st.booleans(), CLUTTER, st.integers(3, 4))
def test_any_layout_gives_the_examples_and_labels_of_datasets(
    tmp_path_factory: pytest.TempPathFactory,
    layout: tuple[str, ...],
    classes: list[str],
    suffix: str,
    deep: bool,
    clutter: list[str],
    count: int,
) -> None:
    root = tmp_path_factory.mktemp("layout")
    for top in layout:
        for name in classes:
            inner = "deep/" if deep else ""
            put(root, *(f"{top}{inner}{name}/{i}{suffix}" for i in range(count)))
    for name in clutter:
        put(root, name)
    expected = theirs(root)
    raw = open_data(str(root), PLAIN)
    found = by_split(raw)
    if len(expected) == 1:  # ours cuts off a test split by itself
        assert sum(found.values(), Counter()) == expected["train"]
    else:
        (test,) = TESTS & set(expected)
        assert found == {"train": expected["train"], "test": expected[test]}


def test_hidden_and_system_files_are_no_classes_and_are_counted(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{i}.png" for name in "ab" for i in range(4)))
    put(tmp_path, ".ipynb_checkpoints/0.png", "__MACOSX/a/0.png", "a/._0.png", "Thumbs.db")
    raw = open_data(str(tmp_path), PLAIN)
    assert raw.classes == ("a", "b")
    assert sum(ours(raw).values()) == 8
    assert any("3 files are left out" in note and "__MACOSX" in note for note in raw.notes)


@pytest.mark.parametrize(
    "name", ["README.txt", "classes.txt", "labels.csv", "class_names.json", "notes.jsonl", "t.tsv"]
)
def test_a_table_beside_class_folders_does_not_replace_the_images(
    tmp_path: Path, name: str
) -> None:
    put(tmp_path, *(f"{kind}/{i}.png" for kind in "ab" for i in range(4)))
    (tmp_path / name).write_text('{"text": "x", "label": 1}\n')
    raw = open_data(str(tmp_path), PLAIN)
    assert (raw.modality, raw.classes) == ("image", ("a", "b"))
    assert any(name in note and "1 file is left out" in note for note in raw.notes)


def test_a_class_with_another_suffix_is_kept(tmp_path: Path) -> None:
    put(tmp_path, *(f"a/{i}.png" for i in range(4)), *(f"b/{i}.jfif" for i in range(4)))
    raw = open_data(str(tmp_path), PLAIN)
    assert raw.classes == ("a", "b")
    assert sum(ours(raw).values()) == 8


def test_images_at_another_depth_are_named_and_never_dropped_in_silence(tmp_path: Path) -> None:
    put(tmp_path, *(f"{kind}/{i}.png" for kind in "ab" for i in range(4)))
    put(tmp_path, *(f"c/below/{i}.png" for i in range(3)))
    raw = open_data(str(tmp_path), PLAIN)
    assert sum(ours(raw).values()) == 11
    assert raw.classes is None
    assert any("3 of 11" in note and "3 in c/below" in note for note in raw.notes)


def test_files_directly_in_split_folders_make_no_classes(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{i}.png" for split in ("train", "test") for i in range(4)))
    raw = open_data(str(tmp_path), PLAIN)
    assert raw.classes is None
    assert raw.num_classes is None
    assert {split: len(rows) for split, rows in raw.splits.items()} == {"train": 4, "test": 4}
    assert any("no labels" in note for note in raw.notes)


def test_folders_beside_splits_are_left_out_with_their_counts(tmp_path: Path) -> None:
    put(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(4)))
    put(tmp_path, *(f"extra/c/{i}.png" for i in range(5)))
    raw = open_data(str(tmp_path), PLAIN)
    assert raw.classes == ("a", "b")
    assert any("5 in extra/c" in note for note in raw.notes)


def test_a_class_that_is_called_like_a_split_stays_in_its_split(tmp_path: Path) -> None:
    put(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("train", "test") for c in ("train", "bus")
                    for i in range(3)))  # fmt: skip
    raw = open_data(str(tmp_path), PLAIN)
    assert {split: len(rows) for split, rows in raw.splits.items()} == {"train": 6, "test": 6}


def test_one_class_folder_gives_no_labels_and_says_so(tmp_path: Path) -> None:
    put(tmp_path, *(f"cat/{i}.png" for i in range(5)))
    raw = open_data(str(tmp_path), PLAIN)
    assert raw.num_classes is None
    assert any("one class folder (cat)" in note for note in raw.notes)


def test_folders_that_are_linked_are_read_once(tmp_path: Path) -> None:
    put(tmp_path / "far", *(f"{i}.png" for i in range(3)))
    put(tmp_path / "set", *(f"a/{i}.png" for i in range(3)))
    (tmp_path / "set" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "set" / "b" / "loop").symlink_to(tmp_path / "set")
    raw = open_data(str(tmp_path / "set"), PLAIN)
    assert raw.classes == ("a", "b")
    assert sum(ours(raw).values()) == 6


@pytest.mark.filterwarnings("ignore")  # the builder leaves its csv reader open
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_metadata_table_gives_the_columns_of_datasets(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, *(f"train/{i}.png" for i in range(4)))
    rows = [(f"{i}.png", f"text {i}") for i in range(3)]
    lines = ["file_name,caption", *(f"{a},{b}" for a, b in rows)]
    if suffix == "jsonl":
        lines = [f'{{"file_name": "{a}", "caption": "{b}"}}' for a, b in rows]
    (tmp_path / "train" / f"metadata.{suffix}").write_text("\n".join(lines) + "\n")
    raw = open_data(str(tmp_path), PLAIN)
    expected: Any = datasets.load_dataset(str(tmp_path), streaming=True)["train"]
    expected = list(expected.cast_column("image", datasets.Image(decode=False)))
    gc.collect()
    read = sorted(
        (stored["path"], caption)
        for part in raw.splits.values()
        for stored, caption in zip(
            part.rows.column("image"), part.rows.column("caption"), strict=True
        )
    )
    assert read == sorted((row["image"]["path"], row["caption"]) for row in expected)
    assert raw.columns.texts == ("caption",)
    assert any("1 image files are left out" in note for note in raw.notes)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "file://secret.png"])
def test_a_metadata_table_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    put(tmp_path, "0.png")
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\n{name},x\n0.png,y\n")
    with pytest.raises(DataError, match="not one inside its folder"):
        open_data(str(tmp_path), PLAIN)


@pytest.mark.parametrize("leaves", [True, False])
def test_a_metadata_table_names_no_link_out_of_its_folder(tmp_path: Path, leaves: bool) -> None:
    root = tmp_path / "set"
    put(root, "0.png", "1.png")
    put(tmp_path, "mine.png")
    (root / "2.png").symlink_to(tmp_path / "mine.png" if leaves else root / "1.png")
    (root / "metadata.csv").write_text("file_name,caption\n0.png,x\n2.png,y\n")
    if leaves:
        with pytest.raises(DataError, match=r"'2\.png', a link that leaves the folder"):
            open_data(str(root), PLAIN)
    else:
        assert open_data(str(root), PLAIN).columns.texts == ("caption",)


# ---------------------------------------------------------------- what is inside a file


def encoded(image: Image.Image, kind: str, **how: Any) -> dict[str, Any]:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return {"bytes": out.getvalue(), "path": None}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_as_their_exif_says(orientation: int) -> None:
    image = Image.new("RGB", (6, 3), "red")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(image, "PNG", exif=exif)
    found = open_image(stored, "set")
    expected = datasets.Image().decode_example(stored)
    assert found.size == expected.size == ((3, 6) if orientation > 4 else (6, 3))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65_535]], np.uint16), [0, 255]),
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 32_768, 65_535]], np.int32), [0, 127, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 127, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 127, 255]),
        (np.array([[0.0, 128.0, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, np.nan, 1.0]], np.float32), [0, 0, 255]),
    ],
    ids=["16", "32 of bytes", "32 of 16", "32", "fractions", "floats", "nan"],
)
def test_deep_grey_values_are_not_black(values: Any, expected: list[int]) -> None:
    stored = encoded(Image.fromarray(values), "TIFF")
    assert np.asarray(open_image(stored, "set")).tolist() == [expected]
