"""Augmentation: what it does to images, from which seed, and to which batches."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from slt_compress.checkpoints import open_checkpoint
from slt_compress.data import open_data, prepare
from slt_compress.data.augment import Augment, timm_transform
from slt_compress.data.options import DataOptions
from slt_compress.errors import DataError
from slt_compress.searching.recipes import parse_recipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 6, side: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=seeded(7))


@given(st.integers(0, 3), st.integers(0, 5))
def test_a_shift_moves_the_image_and_repeats_its_border(most: int, seed: int) -> None:
    ramp = torch.arange(64.0).view(1, 1, 8, 8).expand(4, 1, 8, 8).contiguous()
    moved = Augment(shift=most).apply(ramp, seeded(seed))
    for image in moved:
        down, right = divmod(int(image[0, 4, 4]) - 36, 8)
        right, down = (right - 8, down + 1) if right > 4 else (right, down)
        assert abs(down) <= most
        assert abs(right) <= most
        rows = (torch.arange(8) + down).clamp(0, 7)
        columns = (torch.arange(8) + right).clamp(0, 7)
        assert torch.equal(image[0], ramp[0, 0][rows][:, columns])


def test_a_flip_mirrors_about_the_wanted_share() -> None:
    pixels = images(400)
    flipped = Augment(hflip=0.25).apply(pixels, seeded())
    mirrored = torch.tensor(
        [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, pixels, strict=True)]
    )
    same = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, pixels, strict=True)])
    assert bool((mirrored ^ same).all())
    assert 60 <= int(mirrored.sum()) <= 140
    assert torch.equal(Augment(hflip=1.0).apply(pixels, seeded()), pixels.flip(-1))


def test_turning_by_a_little_changes_a_little_and_by_nothing_nothing() -> None:
    smooth = torch.linspace(0, 1, 16).view(1, 1, 1, 16).expand(3, 1, 16, 16).contiguous()
    tiny = Augment(rotate=0.01, zoom=0.001).apply(smooth, seeded())
    assert torch.allclose(tiny, smooth, atol=1e-2)
    turned = Augment(rotate=90.0).apply(smooth, seeded())
    assert not torch.allclose(turned, smooth, atol=0.1)
    assert 0.0 <= float(turned.min()) <= float(turned.max()) <= 1.0


def test_a_turn_is_one_of_the_image_and_not_of_its_coordinates() -> None:
    """A disc about the centre of an image that is not square stays where it is."""
    y, x = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(40) - 19.5, indexing="ij")
    disc = torch.exp(-(x.square() + y.square()) / 20.0).view(1, 1, 24, 40).expand(5, 1, 24, 40)
    turned = Augment(rotate=180.0).apply(disc.contiguous(), seeded())
    assert float((turned - disc).abs().max()) < 0.05
    moved = Augment(rotate=1e-6, shift=3).apply(disc.contiguous(), seeded())
    weight = moved / moved.sum(dim=(1, 2, 3), keepdim=True)
    right = (weight * x).sum(dim=(1, 2, 3))
    assert 0.5 < float(right.abs().max()) <= 3.01


def test_the_same_seed_gives_the_same_images_and_the_default_none_changed() -> None:
    every = Augment(hflip=0.5, shift=2, rotate=10.0, zoom=0.1)
    assert torch.equal(every.apply(images(), seeded(3)), every.apply(images(), seeded(3)))
    assert not torch.equal(every.apply(images(), seeded(3)), every.apply(images(), seeded(4)))
    assert torch.equal(Augment().apply(images(), seeded()), images())
    assert not Augment().changes
    assert Augment(timm={"hflip": 1.0}).changes


@pytest.mark.parametrize(
    "wrong",
    [{"hflip": 1.5}, {"shift": -1}, {"zoom": 1.0}, {"rotate": -1.0}, {"timm": {"mean": [0.5]}}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_values_that_no_image_could_take_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"data\.augment"):
        Augment(**wrong)


def test_timms_transform_is_a_function_of_the_seed_and_leaves_the_global_ones() -> None:
    options = {"auto_augment": "rand-m9-mstd0.5", "re_prob": 0.5, "hflip": 0.5}
    prepare_ = timm_transform(options, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)
    drawn = [Image.effect_noise((20, 20), 80) for _ in range(4)]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    first = prepare_(drawn, seeded(1))
    assert first.shape == (4, 3, 16, 16)
    assert torch.equal(first, prepare_(drawn, seeded(1)))
    assert not torch.equal(first, prepare_(drawn, seeded(2)))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_an_option_that_timm_does_not_know_is_named() -> None:
    with pytest.raises(DataError, match=r"data\.augment\.timm: .*nonsense"):
        timm_transform({"nonsense": 1}, (3, 16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("augment", [Augment(shift=2), Augment(timm={"hflip": 1.0})], ids=str)
def test_only_the_epochs_of_the_training_split_are_changed(
    augment: Augment,
) -> None:
    checkpoint = open_checkpoint("conv2", init="random", num_classes=10)

    def prepared(augment: Augment) -> Any:
        data = open_data("digits", DataOptions(limit_train=24, augment=augment))
        return prepare(data, checkpoint, batch_size=8, seed=0, limit=8)

    plain, changed = prepared(Augment()), prepared(augment)
    for split in ("train", "held_out", "test"):
        for a, b in zip(getattr(plain, split), getattr(changed, split), strict=True):
            assert torch.equal(a["pixel_values"], b["pixel_values"])
    for a, b in zip(plain.train.epoch(0), changed.train.epoch(0), strict=True):
        assert torch.equal(a["labels"], b["labels"])
        assert not torch.equal(a["pixel_values"], b["pixel_values"])
    again = next(iter(changed.train.epoch(0)))["pixel_values"]
    assert torch.equal(again, next(iter(changed.train.epoch(0)))["pixel_values"])
    assert not torch.equal(again, next(iter(changed.train.epoch(1)))["pixel_values"])


def test_the_recipe_holds_it() -> None:
    recipe = parse_recipe({"data": {"augment": {"hflip": 0.5, "timm": {"re_prob": 0.1}}}})
    assert recipe.data.augment == Augment(hflip=0.5, timm={"re_prob": 0.1})
    assert parse_recipe(recipe.to_dict()).data == recipe.data
    assert replace(recipe.data, augment=Augment()) == parse_recipe({}).data
