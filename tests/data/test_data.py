"""Data sets: what is found in files and folders, which split and column is what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from data_sets import (
    PLAIN,
    checkpoint,
    image_table,
    png,
    ready,
    shard_images,
    write_table,
)

import slt_compress
from slt_compress.checkpoints import open_checkpoint, sketch_checkpoint
from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.data import DataOptions, default_data, modalities_of, open_data, prepare
from slt_compress.data.labels import match_names
from slt_compress.errors import DataError

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return shard_images(tmp_path / "set")


# ---------------------------------------------------------------- formats of files


def test_image_folder(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, colour in COLOURS.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(4):
                (tmp_path / split / name / f"{number}.png").write_bytes(png(colour, (5, 9)))
    raw = open_data(str(tmp_path), PLAIN)
    assert raw.classes == ("blue", "green", "red")
    assert raw.test_split == "validation"
    data = prepare(raw, checkpoint("resnet20-cifar", 3), batch_size=12, seed=0)
    assert data.test is not None
    batch = next(iter(data.test))
    net = REFERENCE["resnet20-cifar"]
    for label, colour in enumerate(COLOURS.values()):
        pixels = batch["pixel_values"][batch["labels"] == label]
        assert pixels.shape == (4, 3, 32, 32)
        for channel, value in enumerate(colour):
            wanted = (value / 255 - net.mean[channel]) / net.std[channel]
            assert torch.allclose(pixels[:, channel], torch.tensor(wanted), atol=1e-6)


def test_colours_become_grey_by_itu_r_601(tmp_path: Path) -> None:
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.png").write_bytes(png(colour))
    data = ready(tmp_path, checkpoint(classes=3), batch_size=20)
    luma = {"red": 0.299, "green": 0.587, "blue": 0.114}
    for label, name in enumerate(sorted(COLOURS)):
        for batch in data.train.epoch(0):
            pixels = batch["pixel_values"][batch["labels"] == label] * 0.3081 + 0.1307
            assert torch.allclose(pixels, torch.tensor(luma[name]), atol=1 / 255)
    assert "20% of train" in data.test_split
    assert any("20% of train" in note for note in data.notes)


CSV = "text,label\n" + "".join(
    f'"line {n}, with a comma",{"yes" if n % 3 else "no"}\n' for n in range(20)
)


def test_csv_labels_are_classes_by_sorted_name(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(CSV)
    (tmp_path / "test.csv").write_text(CSV)
    raw = open_data(str(tmp_path), PLAIN)
    assert raw.classes == ("no", "yes")
    assert raw.modality == "text"
    assert raw.splits["test"].rows.column("text", [1]) == ["line 1, with a comma"]
    assert raw.splits["test"].labels.tolist()[:4] == [0, 1, 1, 0]
    (tmp_path / "test.csv").write_text("text,label\na,maybe\nb,yes\n")
    with pytest.raises(DataError, match=r"'maybe'.*none of the training split's 2 classes"):
        open_data(str(tmp_path), PLAIN)


def test_tsv_jsonl_and_txt(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text('sentence\tlabel\na "quoted word\t1\nb\t0\nc\t1\n')
    raw = open_data(str(tmp_path / "train.tsv"), PLAIN)
    assert raw.num_classes == 2
    assert raw.classes is None
    lines = [{"premise": "p", "hypothesis": f"h{n}", "label": n / 2} for n in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    raw = open_data(str(tmp_path / "a.jsonl"), PLAIN)
    assert raw.columns.inputs == ("premise", "hypothesis")
    assert raw.regression
    assert raw.num_classes == 1
    (tmp_path / "b.txt").write_text("one\n\ntwo\nthree\nfour\n")
    raw = open_data(str(tmp_path / "b.txt"), PLAIN)
    train, test = (raw.splits[name].rows.column("text") for name in ("train", "test"))
    assert train + test == ["one\n", "\n", "two\n", "three\n", "four\n"]


def test_saved_data_sets(tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])}
    )
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(10)], "label": [0, 1] * 5}
    saved = datasets.Dataset.from_dict(rows, features=features).select([9, 8, 7, 6, 5, 4, 3, 2])
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=saved, validation=saved).save_to_disk(str(tmp_path / "two"))
    one, two = (open_data(str(tmp_path / name), PLAIN) for name in ("one", "two"))
    assert one.classes == two.classes == ("x", "y")
    assert two.test_split == "validation"
    assert two.splits["train"].rows.column("image", [0])[0]["bytes"] == png(9)
    assert two.splits["train"].labels.tolist() == [1, 0, 1, 0, 1, 0, 1, 0]


# ---------------------------------------------------------------- splits, columns and labels


def test_unlabelled_test_split_is_passed_over(tmp_path: Path) -> None:
    rows = {"sentence": ["a", "b", "c"], "label": [0, 1, 0]}
    write_table(tmp_path / "train.parquet", rows)
    write_table(tmp_path / "test.parquet", rows | {"label": [-1, -1, -1]})
    write_table(tmp_path / "validation.parquet", rows | {"label": [1, -1, 0]})
    raw = open_data(str(tmp_path), PLAIN)
    assert raw.test_split == "validation"
    assert raw.splits["test"].rows.column("sentence") == ["a", "c"]
    assert raw.splits["test"].labels.tolist() == [1, 0]


def test_no_train_split_names_the_option(tmp_path: Path) -> None:
    for name in ("validation", "test"):
        write_table(tmp_path / f"{name}.parquet", {"text": [name] * 4})
    with pytest.raises(DataError, match=r"no split 'train'; it has test, validation.*data\.train="):
        open_data(str(tmp_path), PLAIN)
    raw = open_data(str(tmp_path), DataOptions(train="validation"))
    assert raw.splits["train"].rows.column("text", [0]) == ["validation"]
    assert raw.test_split == "test"


def test_named_columns(tmp_path: Path) -> None:
    rows = {"a": ["x", "y", "z"], "b": ["u", "v", "w"], "n": [3, 4, 5], "label": [0, 1, 0]}
    path = write_table(tmp_path / "train.parquet", rows)
    raw = open_data(str(path), DataOptions(text=("b", "a"), label="n"))
    assert raw.columns.inputs == ("b", "a")
    assert raw.num_classes == 6
    with pytest.raises(
        DataError, match=r"no column of images, text or sound.*a, b, n, label.*data\.image"
    ):
        open_data(str(path), PLAIN)
    with pytest.raises(DataError, match=r"no column 'q' \(data\.label\); its columns are a, b"):
        open_data(str(path), DataOptions(text=("a",), label="q"))


BAD: dict[str, tuple[bytes, str]] = {
    "x.parquet": (b"PAR1 this is not parquet", "cannot be read as parquet"),
    "x.jsonl": (b'{"text": 1}\n[2]\n', "cannot be read as jsonl"),
    "x.json": (b"[" * 100_000, "cannot be read as json"),
    "x.csv": (b"a,b\n1\n", "cannot be read as csv"),
    "x.txt": (b"\xff\xfe\x00\xd8", "cannot be read as txt"),
    "x.pkl": (b"\x80\x04.", "is not a data file that can be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_one_sentence(tmp_path: Path, name: str) -> None:
    content, sentence = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        open_data(str(tmp_path / name), PLAIN)
    assert "\n" not in str(caught.value)


def test_a_damaged_image_is_one_sentence(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": b"no image", "path": None}] * 4, "label": [0, 1, 0, 1]}
    write_table(tmp_path / "train.parquet", rows)
    data = ready(tmp_path, checkpoint(classes=2))
    with pytest.raises(DataError, match="an image cannot be decoded"):
        next(data.train.epoch(0))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        open_data(str(tmp_path / "nowhere"), PLAIN)
    with pytest.raises(DataError, match="holds no"):
        open_data(str(tmp_path), PLAIN)


@pytest.mark.parametrize(
    "options",
    [{"held_out": 0.0}, {"limit_train": 0}, {"max_length": 1}, {"text": ("a", "b", "c")}],
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"data.{next(iter(options))}"):
        DataOptions(**options)


DEFAULTS = {
    "vit": "timm/mini-imagenet",
    "convnext": "timm/mini-imagenet",
    "gpt2": "Salesforce/wikitext:wikitext-2-raw-v1",
    "bert": "Salesforce/wikitext:wikitext-2-raw-v1",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_for_what_a_model_reads(checkpoints: dict[str, Path], name: str) -> None:
    default = default_data(open_checkpoint(checkpoints[name]))
    assert default.spec == DEFAULTS[name]
    assert "B" in default.download


def test_a_random_network_cannot_learn_labels_that_a_default_lacks(
    checkpoints: dict[str, Path],
) -> None:
    with pytest.raises(DataError, match=r"no default data set with labels.*--dataset"):
        default_data(open_checkpoint(checkpoints["bert"], init="random"))


MATCHES = [
    (["cat", "dog"], ["dog", "cat"], (1, 0)),
    (["Polar_Bear", "ICE cream"], ["ice-cream", "x", "polar bear"], (2, 0)),
    (["tinca tinca", "cock"], ["tench, Tinca tinca", "hen", "cock"], (0, 2)),
    (["hen", "crane", "ox", "crane"], ["hen", "crane", "ox", "crane"], (0, 1, 2, 3)),
    (["crane"], ["hen", "crane", "crane"], None),
    (["cat", "dog"], ["cat", "horse"], None),
    (["tench", "tinca tinca"], ["tench, tinca tinca", "dog"], None),
]


@pytest.mark.parametrize(("data", "model", "ids"), MATCHES)
def test_class_names(data: list[str], model: list[str], ids: tuple[int, ...] | None) -> None:
    assert match_names(data, model) == ids


def test_labels_are_renumbered_for_the_head(images: Path) -> None:
    plain = ready(images, checkpoint(classes=2))
    data = ready(images, checkpoint(classes=3, names=("B", "c", "A")))
    assert plain.test is not None
    assert data.test is not None
    assert next(iter(plain.test))["labels"].tolist() == [0, 1, 0, 1]
    assert next(iter(data.test))["labels"].tolist() == [2, 0, 2, 0]


def test_labels_that_do_not_match_are_left_out(images: Path) -> None:
    data = ready(images, checkpoint(classes=10))
    assert not data.labels_match
    assert "2 classes and the model 10" in data.label_note
    assert set(next(data.train.epoch(0))) == {"pixel_values"}


def test_wordnet_ids_are_imagenets_classes(tmp_path: Path) -> None:
    # n01440764 is class 0 (tench) and n15075141 class 999 (toilet tissue) of ImageNet-1k.
    image_table(tmp_path / "train.parquet", 6, ["n15075141", "n01440764"])
    data = ready(tmp_path, checkpoint(classes=1000))
    assert data.labels_match
    assert {int(v) for batch in data.train for v in batch["labels"]} <= {0, 999}
    assert {int(v) for batch in data.train for v in batch["labels"]} == {0, 999}


@pytest.mark.parametrize(
    ("kind", "settings", "reads"),
    [
        ("whisper", {}, "sound and text"),
        ("clip", {}, "images and text"),
        ("time_series_transformer", {"prediction_length": 4}, "time series"),
    ],
)
def test_what_no_data_set_can_feed_is_refused_before_it_is_loaded(
    kind: str, settings: dict[str, object], reads: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **settings}))
    sketch = sketch_checkpoint(tmp_path)
    with pytest.raises(DataError, match=rf"reads {reads}.*search\(module, batches, loss_fn"):
        modalities_of(sketch)
    # the folder has no weights: that it is not said shows that nothing was opened
    with pytest.raises(DataError, match=f"reads {reads}"):
        slt_compress.search(tmp_path)
    assert any(f"reads {reads}" in line for line in slt_compress.plan(tmp_path).warnings)
