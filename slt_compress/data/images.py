"""Images as model inputs: decoded, prepared by the model's pipeline, and kept while they fit."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from slt_compress.data.augment import Augment, timm_transform
from slt_compress.data.image_pipelines import Pipeline, pipeline_of
from slt_compress.data.splits import Ready, cut, label_tensor, match_of
from slt_compress.errors import DataError
from slt_compress.storage.regular import regular

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data.batches import Batch
    from slt_compress.data.raw import RawData, Split

CACHE_BYTES = 2 * 2**30
"""The preprocessed images of one split are kept in memory up to this size."""


@dataclass(slots=True, kw_only=True)
class Store:
    """Prepared images, made on demand and kept if all of them fit in `CACHE_BYTES`."""

    kept: Tensor | None = None
    done: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def get(self, positions: Tensor, count: int, make: Callable[[Tensor], Tensor]) -> Tensor:
        """The prepared images at `positions` of `count`; `make` prepares missing ones."""
        if self.kept is None and not len(self.done):
            self.done = torch.zeros(count, dtype=torch.bool)
        missing = positions[~self.done[positions]]
        if len(missing) == 0 and self.kept is not None:
            return self.kept[positions]
        made = make(missing)
        if self.kept is None and count * made[0].nbytes <= CACHE_BYTES:
            self.kept = torch.empty((count, *made.shape[1:]), dtype=made.dtype)
        if self.kept is None:
            return made
        self.kept[missing] = made
        self.done[missing] = True
        return self.kept[positions]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageExamples:
    """Examples of a split of images: "pixel_values", and class numbers as "labels"."""

    split: Split
    column: str
    pipeline: Pipeline
    labels: Tensor | None
    spec: str
    augment: Augment = field(default_factory=Augment)
    store: Store = field(default_factory=Store, repr=False)

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, positions: Tensor, chance: torch.Generator) -> Batch:
        """Inputs float [N, C, H, W]; labels unchanged, if there are any."""
        batch = {"pixel_values": self._pixels(positions, chance)}
        if self.labels is not None:
            batch["labels"] = self.labels[positions]
        return batch

    def _pixels(self, positions: Tensor, chance: torch.Generator) -> Tensor:
        if self.augment.timm:
            pipeline = self.pipeline
            prepare = timm_transform(self.augment.timm, pipeline.size, pipeline.mean, pipeline.std)
            pixels = prepare(self._open(positions), chance)
        else:
            kept = self.store.get(positions, len(self), self._make)
            pixels = self.pipeline.finish(kept)
        return self.augment.apply(pixels, chance)

    def _make(self, positions: Tensor) -> Tensor:
        return self.pipeline.prepare(self._open(positions))

    def _open(self, positions: Tensor) -> list[Image.Image]:
        stored = self.split.rows.column(self.column, positions.numpy())
        return [open_image(value, self.spec) for value in stored]


# Formats that Pillow hands to another program.
_FOREIGN = ("EPS",)


def open_image(stored: object, spec: str) -> Image.Image:
    """Decode a stored image ({"bytes", "path"} or bytes) to mode L, RGB or RGBA.

    Raises:
        DataError: a missing or damaged image, or one larger than Pillow accepts.
    """
    Image.init()
    formats = [name for name in Image.OPEN if name not in _FOREIGN]
    value: dict[str, Any] = stored if isinstance(stored, dict) else {"bytes": stored, "path": None}
    source = value.get("bytes")
    try:
        place = io.BytesIO(source) if source is not None else regular(value["path"])
        with Image.open(place, formats=formats) as image:
            image.load()
            mode, upright = image.mode, ImageOps.exif_transpose(image)
            if mode.startswith(("I", "F")):  # more than 8 bits: Pillow would clip them at 255
                return Image.fromarray(_eight_bits(np.asarray(upright), mode))
            if mode in {"RGBA", "PA"} or "transparency" in image.info:
                return upright.convert("RGBA")
            return upright.convert("L" if mode in {"1", "L", "LA"} else "RGB")
    except (OSError, ValueError, SyntaxError, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{spec}: an image cannot be decoded: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{spec}: an image is too large: {error}") from error


def _eight_bits(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    """Grey values as 8 bits: by the bits of the mode, or by the range where that has 32.

    Values up to 1 (floats), 255, 65,535 or above are fractions, bytes, 16 bits or 31 bits.
    """
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0) if mode == "F" else values
    most = float(values.max(initial=0))
    if mode.startswith("I;16"):
        most = 65_535.0
    steps = (1.0, 255.0, 65_535.0) if mode == "F" else (255.0, 65_535.0)
    full = next((step for step in steps if most <= step), max(most, 2.0**31 - 1))
    if mode == "F":
        scaled = values.astype(np.float64) * 255.0 / full
    else:
        scaled = values.astype(np.int64) * 255 // int(full)
    return scaled.clip(0, 255).astype(np.uint8)


def images(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    """Examples of images, with the classes of the rows if the head has them.

    Raises:
        DataError: the checkpoint's preprocessing or the augmentation cannot be used.
    """
    pipeline = pipeline_of(checkpoint)
    match = match_of(raw, checkpoint)
    augment = raw.options.augment
    if augment.timm:  # a wrong option is refused before the search
        timm_transform(augment.timm, pipeline.size, pipeline.mean, pipeline.std)
    train, held_out, test = (
        ImageExamples(
            split=split,
            column=raw.columns.inputs[0],
            pipeline=pipeline,
            labels=label_tensor(split, match),
            spec=raw.spec,
        )
        for split in cut(raw, limit)
    )
    changed = replace(train, augment=augment) if augment.changes else None
    notes = (pipeline.note,) if pipeline.note else ()
    return Ready(
        train=train, held_out=held_out, test=test, match=match, notes=notes, augmented=changed
    )
