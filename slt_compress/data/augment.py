"""Augmentation: random changes to training images, from a seed per batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from slt_compress.data.image_modes import mode_for
from slt_compress.errors import DataError

# Arguments of timm's transform that the checkpoint determines.
_OURS = ("input_size", "is_training", "mean", "std", "separate", "use_prefetcher")


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """The `data.augment` section: random changes to training images; none by default.

    Attributes:
        hflip: probability that an image is mirrored.
        shift: an image is moved by at most this many pixels in each direction, with its border
            repeated; by whole pixels, unless it is also rotated or zoomed (He et al. 2016, "Deep
            Residual Learning", section 4.2, pads with zeros instead).
        rotate: an image is rotated by at most this many degrees either way.
        zoom: its size changes by at most this fraction; 0.1 means 90 to 110 per cent.
        timm: arguments of `timm.data.create_transform`, such as `{auto_augment: rand-m9-mstd0.5,
            re_prob: 0.25}`; if given, timm's training transform prepares the images.
    """

    hflip: float = 0.0
    shift: int = 0
    rotate: float = 0.0
    zoom: float = 0.0
    timm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not 0.0 <= self.hflip <= 1.0:
            raise DataError(f"data.augment.hflip is {self.hflip}; it must lie in [0, 1]")
        if self.shift < 0 or self.rotate < 0.0 or not 0.0 <= self.zoom < 1.0:
            raise DataError(
                "data.augment needs shift >= 0, rotate >= 0 and 0 <= zoom < 1, "
                f"not {self.shift}, {self.rotate} and {self.zoom}"
            )
        if not isinstance(self.timm, Mapping):
            raise DataError(f"data.augment.timm must be a mapping, not {self.timm!r}")
        fixed = [key for key in self.timm if key in _OURS]
        if fixed:
            raise DataError(
                f"data.augment.timm.{fixed[0]} is determined by the checkpoint; remove it"
            )

    @property
    def changes(self) -> bool:
        """Whether any image is changed."""
        return bool(self.timm or self.hflip or self.shift or self.rotate or self.zoom)

    def apply(self, pixels: Tensor, chance: torch.Generator) -> Tensor:
        """Inputs float [N, C, H, W], changed by everything except `timm`."""
        if self.rotate or self.zoom:
            pixels = self._turned(pixels, chance)
        elif self.shift:
            pixels = _shifted(pixels, self.shift, chance)
        if self.hflip:
            mirrored = torch.rand(len(pixels), generator=chance) < self.hflip
            pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        return pixels

    def _turned(self, pixels: Tensor, chance: torch.Generator) -> Tensor:
        """Rotation and zoom about the centre with a shift, bilinear, the border repeated."""
        count, _, height, width = pixels.shape
        drawn = torch.rand(4, count, generator=chance) * 2.0 - 1.0
        angle, scale = torch.deg2rad(drawn[0] * self.rotate), 1.0 + drawn[1] * self.zoom
        cosine, sine = angle.cos() / scale, angle.sin() / scale
        # The coordinates of grid_sample run from -1 to 1, whatever the size of the image.
        right, down = drawn[2] * self.shift * 2.0 / width, drawn[3] * self.shift * 2.0 / height
        aspect = height / width
        rows = [cosine, sine / aspect, -sine * aspect, cosine, right, down]
        matrix = torch.stack(rows, dim=1).view(count, 3, 2)
        grid = (_centred(height, width) @ matrix).view(count, height, width, 2)
        return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def _centred(height: int, width: int) -> Tensor:
    """(x, y, 1) of every pixel, float [H * W, 3], in the coordinates of grid_sample."""
    y = (torch.arange(height) * 2.0 + 1.0) / height - 1.0
    x = (torch.arange(width) * 2.0 + 1.0) / width - 1.0
    return torch.stack(
        [x.repeat(height), y.repeat_interleave(width), torch.ones(height * width)], 1
    )


def _shifted(pixels: Tensor, most: int, chance: torch.Generator) -> Tensor:
    count, channels, height, width = pixels.shape
    padded = F.pad(pixels, (most, most, most, most), mode="replicate")
    down, right = torch.randint(2 * most + 1, (2, count, 1), generator=chance)
    rows = (down + torch.arange(height)).view(count, 1, height, 1)
    columns = (right + torch.arange(width)).view(count, 1, 1, width)
    images = torch.arange(count).view(count, 1, 1, 1)
    return padded[images, torch.arange(channels).view(1, channels, 1, 1), rows, columns]


def timm_transform(
    options: Mapping[str, Any],
    size: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[Sequence[Image.Image], torch.Generator], Tensor]:
    """timm's own training transform for inputs of `size` (C, H, W): images to [N, C, H, W].

    Raises:
        DataError: timm does not know an option, or cannot use its value.
    """
    from timm.data import create_transform

    mode = mode_for(size[0], "the model")
    try:
        transform: Any = create_transform(
            size, is_training=True, mean=tuple(mean), std=tuple(std), **options
        )
        transform(Image.new(mode, (size[2], size[1])))
    except Exception as error:  # timm fails wherever a wrong option is first used
        raise DataError(f"data.augment.timm: {type(error).__name__}: {error}") from None

    def prepare(images: Sequence[Image.Image], chance: torch.Generator) -> Tensor:
        with _global_seeds(chance):
            return torch.stack([transform(image.convert(mode)) for image in images])

    return prepare


@contextmanager
def _global_seeds(chance: torch.Generator) -> Iterator[None]:
    """Seed the global generators, from which timm draws, inside this block; restore them after."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    seed = int(torch.randint(2**31 - 1, (1,), generator=chance))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
