"""Batches: the embedded digits, seeded epochs, and images as each family wants them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from data_sets import PLAIN, checkpoint, ready, shard_images, write_table
from PIL import Image

from slt_compress.checkpoints import open_checkpoint
from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.data import DataOptions, open_data
from slt_compress.data.batches import Batches
from slt_compress.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return shard_images(tmp_path / "set")


# ---------------------------------------------------------------- digits


def test_digits_are_the_uci_set_with_its_split() -> None:
    raw = open_data("digits", PLAIN)
    assert raw.classes == tuple("0123456789")
    assert {name: len(split) for name, split in raw.splits.items()} == {"train": 1437, "test": 360}
    labels = [split.labels for split in raw.splits.values()]
    # Class counts as published for the 1,797 images of the UCI test set.
    assert np.bincount(np.concatenate(labels)).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert np.bincount(labels[1]).tolist() == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]


def test_digits_pixels_are_those_of_the_source() -> None:
    column = open_data("digits", PLAIN).splits["train"].rows.column("image", [0])
    with Image.open(io.BytesIO(column[0]["bytes"])) as image:
        pixels = np.asarray(image)
    # The first image of the source, a 0: values 0..16, stored as (v * 255 + 8) // 16.
    source = np.array(
        [
            [0, 0, 5, 13, 9, 1, 0, 0],
            [0, 0, 13, 15, 10, 15, 5, 0],
            [0, 3, 15, 2, 0, 11, 8, 0],
            [0, 4, 12, 0, 0, 8, 8, 0],
            [0, 5, 8, 0, 0, 9, 8, 0],
            [0, 4, 11, 0, 1, 12, 7, 0],
            [0, 2, 14, 5, 10, 12, 0, 0],
            [0, 0, 6, 13, 10, 0, 0, 0],
        ]
    )
    assert pixels.tolist() == ((source * 255 + 8) // 16).tolist()


def test_digits_for_a_reference_net() -> None:
    data = ready("digits", checkpoint(), batch_size=64)
    assert data.splits == {"train": 1293, "held_out": 144, "test": 360}
    assert data.labels_match
    assert data.label_note == ""
    batch = next(data.train.epoch(0))
    assert batch["pixel_values"].shape == (64, 1, 28, 28)
    assert batch["pixel_values"].dtype is torch.float32
    assert batch["labels"].dtype is torch.int64
    # Black, and never beyond white, in the net's own mean and standard deviation.
    low, high = (0 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081
    assert batch["pixel_values"].min().item() == pytest.approx(low)
    assert 0 < batch["pixel_values"].max().item() <= high + 1e-6


def test_a_reference_net_learns_the_digits() -> None:
    data = ready("digits", checkpoint(), batch_size=64)
    torch.manual_seed(0)
    net = REFERENCE["lenet-300-100"].build(10)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    for epoch in range(4):
        for batch in data.train.epoch(epoch):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(batch["pixel_values"]), batch["labels"])
            loss.backward()
            optimiser.step()
    assert data.test is not None
    right = sum(
        int((net(batch["pixel_values"]).argmax(1) == batch["labels"]).sum()) for batch in data.test
    )
    assert right / data.test.examples > 0.93


# ---------------------------------------------------------------- batches


def numbers(data: Batches, epoch: int) -> list[list[int]]:
    """The grey values of `image_table`, which are its row numbers."""
    net = REFERENCE["lenet-300-100"]
    scale, mean = net.std[0], net.mean[0]
    return [
        ((batch["pixel_values"][:, 0, 0, 0] * scale + mean) * 255).round().int().tolist()
        for batch in data.epoch(epoch)
    ]


def test_epochs_are_seeded_permutations(images: Path) -> None:
    data = ready(images, checkpoint(classes=2))
    again = ready(images, checkpoint(classes=2))
    other = ready(images, checkpoint(classes=2), seed=1)
    assert data.splits == {"train": 39, "held_out": 4, "test": 9}
    assert numbers(data.train, 3) == numbers(again.train, 3)
    assert numbers(data.train, 3) != numbers(data.train, 4)
    assert numbers(data.train, 3) != numbers(other.train, 3)
    seen = [number for batch in numbers(data.train, 3) for number in batch]
    assert len(data.train) == len(numbers(data.train, 3)) == 9
    assert len(set(seen)) == len(seen) == 36
    held = {number for batch in numbers(data.held_out, 0) for number in batch}
    assert len(held) == 4
    assert not held & set(seen)
    assert held == {number for batch in numbers(other.held_out, 0) for number in batch}
    assert held | set(seen) <= set(range(43))


def test_in_order_every_example_comes_once(images: Path) -> None:
    data = ready(images, checkpoint(classes=2))
    assert data.test is not None
    assert numbers(data.test, 0) == [[100, 101, 102, 103], [104, 105, 106, 107], [108]]
    assert len(data.test) == 3
    assert [batch["labels"].tolist() for batch in data.test] == [[0, 1, 0, 1], [0, 1, 0, 1], [0]]
    assert sum(len(batch["labels"]) for batch in data.train) == 39


def test_a_split_smaller_than_a_batch_gives_one(images: Path) -> None:
    data = ready(images, checkpoint(classes=2), batch_size=64)
    assert len(data.train) == 1
    assert [len(batch["labels"]) for batch in data.train.epoch(0)] == [39]


def test_images_too_many_to_keep_are_made_anew(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ready(images, checkpoint(classes=2))
    expected = [numbers(kept.train, epoch) for epoch in (0, 1)]
    monkeypatch.setattr("slt_compress.data.images.CACHE_BYTES", 100)
    made = ready(images, checkpoint(classes=2))
    assert [numbers(made.train, epoch) for epoch in (0, 1)] == expected


def test_images_are_decoded_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(images, checkpoint(classes=2))
    assert data.test is not None
    first = list(data.test)
    monkeypatch.setattr("slt_compress.data.images.open_image", None)  # calling it would raise
    again = list(data.test)
    assert all(
        a["pixel_values"].equal(b["pixel_values"]) for a, b in zip(first, again, strict=True)
    )


def test_resizing_is_bilinear(tmp_path: Path) -> None:
    half = np.zeros((4, 4), np.uint8)
    half[:, 2:] = 255
    out = io.BytesIO()
    Image.fromarray(half).save(out, "PNG")
    rows = {"image": [{"bytes": out.getvalue(), "path": None}] * 4, "label": [0, 1, 0, 1]}
    write_table(tmp_path / "train.parquet", rows)
    pixels = next(iter(ready(tmp_path, checkpoint(classes=2)).train))["pixel_values"]
    line = (pixels[0, 0, 14] * 0.3081 + 0.1307) * 255
    # Between the centres of the two middle pixels (10 and 17 of 28) the value rises evenly.
    assert line[:10].abs().max().item() < 1
    assert line[18:].min().item() > 254
    assert torch.allclose(line[11:17], (torch.arange(11, 17) - 10) / 7 * 255, atol=1)


def test_limits(images: Path) -> None:
    data = ready(images, checkpoint(classes=2), DataOptions(limit_train=12), limit=5)
    assert data.splits == {"train": 12, "held_out": 1, "test": 5}
    assert data.test is not None
    everything = [number for batch in numbers(data.test, 0) for number in batch]
    assert everything == sorted(everything)


# ---------------------------------------------------------------- other families


def saved_vit(folder: Path) -> Path:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        image_size=16, patch_size=8, num_labels=2,
    )  # fmt: skip
    config.id2label, config.label2id = {0: "b", 1: "a"}, {"b": 0, "a": 1}
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


def test_transformers_image_processor(images: Path, tmp_path: Path) -> None:
    folder = saved_vit(tmp_path / "vit")
    transformers.ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 1.0]
    ).save_pretrained(folder)
    model = open_checkpoint(folder)
    data = ready(images, model)
    assert data.test is not None
    batch = next(iter(data.test))
    assert batch["labels"].tolist() == [1, 0, 1, 0]  # the model's b comes first
    grey = torch.tensor([100.0, 101, 102, 103]).view(4, 1) / 255
    wanted = (grey - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 1.0])
    assert torch.allclose(batch["pixel_values"].mean((2, 3)), wanted, atol=1e-5)
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    assert model.module(**batch).logits.shape == (4, 2)
    assert not any("processor" in note for note in data.notes)


def test_random_init_of_another_size_than_its_processor(images: Path, tmp_path: Path) -> None:
    folder = saved_vit(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    model = open_checkpoint(folder, init="signed-constant", num_classes=2)
    data = ready(images, model)
    assert model.module(**next(data.train.epoch(0))).logits.shape == (4, 2)
    assert any("(16, 16)" in note for note in data.notes)


def test_without_a_processor_a_default_is_used_and_said(images: Path, tmp_path: Path) -> None:
    data = ready(images, open_checkpoint(saved_vit(tmp_path / "vit")))
    assert data.test is not None
    pixels = next(iter(data.test))["pixel_values"]
    assert pixels.shape == (4, 3, 16, 16)
    assert pixels[0].unique().item() == pytest.approx((100 / 255 - 0.5) / 0.5)
    assert any("no preprocessor_config.json" in note for note in data.notes)


def test_a_damaged_processor_is_one_sentence(images: Path, tmp_path: Path) -> None:
    folder = saved_vit(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "Nothing"')
    with pytest.raises(DataError, match=r"image processor in .* cannot be used"):
        ready(images, open_checkpoint(folder))


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (3, 224, 224)), ({"in_chans": 1}, (1, 224, 224))],
)
def test_timm_data_config(
    images: Path, options: dict[str, int], shape: tuple[int, int, int]
) -> None:
    model = open_checkpoint(
        "timm:test_resnet", init="signed-constant", num_classes=2, options=options
    )
    data = ready(images, model)
    assert data.test is not None
    batch = next(iter(data.test))
    side = timm.data.resolve_data_config({}, model=model.module)["input_size"][-1]
    assert batch["pixel_values"].shape == (4, shape[0], side, side)
    config = model.config["pretrained_cfg"]
    mean, std = (sum(config[key]) / 3 for key in ("mean", "std"))
    if shape[0] == 1:
        assert batch["pixel_values"][0].mean().item() == pytest.approx((100 / 255 - mean) / std)
    assert model.module(batch["pixel_values"]).shape == (4, 2)


def test_timm_size_of_the_model(images: Path) -> None:
    model = open_checkpoint(
        "timm:test_vit", init="signed-constant", num_classes=2, options={"img_size": 32}
    )
    batch = next(ready(images, model).train.epoch(0))
    assert batch["pixel_values"].shape == (4, 3, 32, 32)
    assert model.module(batch["pixel_values"]).shape == (4, 2)
