"""Image processors of transformers, told the channels and the size that the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from slt_compress.data.image_modes import mode_for
from slt_compress.data.processors import opening

if TYPE_CHECKING:
    from pathlib import Path

    from slt_compress.checkpoints import Checkpoint

Size = tuple[int, int]
"""Height and width."""

# Mean and deviation of each channel if a processor gives none.
_PLAIN = 0.5
# Two images of different shapes: a processor that makes them alike fixes the size of its outputs.
_TRIED: tuple[Size, Size] = ((64, 48), (40, 60))
_USUAL: Size = (224, 224)


class ImageProcessor:
    """The image processor in a checkpoint's folder, as its model needs it.

    `size` is (height, width) of the outputs, `mean` and `std` are the normalisation, `note` says
    what was changed, "" if nothing.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, built: Size | None) -> None:
        with opening("image processor", folder):
            from transformers import AutoImageProcessor

            self._call: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            self.channels = int(checkpoint.config.get("num_channels") or 3)
            self._mode = mode_for(self.channels, checkpoint.source)
            self.mean = self._of_channels("image_mean")
            self.std = self._of_channels("image_std")
            own = self._own_size()
        self._forced: Size | None = None
        self._how: dict[str, Any] = {}
        if self.channels != 3:
            how = {"do_convert_rgb": False, "image_mean": self.mean, "image_std": self.std}
            # transformers 5.17 guesses where the channels are, and knows of 1 and 3 only
            self._how = {**how, "input_data_format": "channels_first"}
        wanted = self._wanted(checkpoint, built, own)
        self.size = wanted or own or _USUAL
        self.note = ""
        if wanted is not None:
            self.note = f"Images are resized to {wanted} (height, width) for the model."
            self._resize_to(wanted, by_processor=own is not None and checkpoint.init is not None)

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Images as float [N, C, H, W]."""
        ready = [image.convert(self._mode) for image in images]
        if self._forced is not None:
            height, width = self._forced
            ready = [im.resize((width, height), Image.Resampling.BILINEAR) for im in ready]
        read = ready if self.channels == 3 else [_channels_first(image) for image in ready]
        pixels: Tensor = self._call(images=read, return_tensors="pt", **self._how)["pixel_values"]
        return pixels

    def _of_channels(self, name: str) -> tuple[float, ...]:
        values = tuple(getattr(self._call, name, None) or (_PLAIN,))
        if len(values) == self.channels:
            return values
        return (sum(values) / len(values),) * self.channels

    def _own_size(self) -> Size | None:
        """The size of all its outputs; None if that follows each image."""
        sizes = []
        for width, height in _TRIED:
            seen = self._call(images=[Image.new("RGB", (width, height))], return_tensors="pt")
            sizes.append(tuple(seen["pixel_values"].shape[-2:]))
        return (int(sizes[0][0]), int(sizes[0][1])) if sizes[0] == sizes[1] else None

    def _wanted(self, checkpoint: Checkpoint, built: Size | None, own: Size | None) -> Size | None:
        """The size that images have to be given; None if the processor's own will do."""
        if own is None:
            return built or _USUAL
        if built is None or own == built:
            return None
        fits = checkpoint.init is None and _accepts(checkpoint, (self.channels, *own))
        return None if fits else built

    def _resize_to(self, size: Size, *, by_processor: bool) -> None:
        if by_processor:
            resized = {"height": size[0], "width": size[1]}
            how = {"size": resized, "do_resize": True, "do_center_crop": False}
        else:
            self._forced = size
            how = {"do_resize": False, "do_center_crop": False}
        self._how = {**self._how, **how}


def _channels_first(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels as uint8 [C, H, W]."""
    height, width = image.height, image.width
    return np.asarray(image, dtype=np.uint8).reshape(height, width, -1).transpose(2, 0, 1).copy()


def _accepts(checkpoint: Checkpoint, shape: tuple[int, ...]) -> bool:
    """Whether a model reads images of this shape (C, H, W)."""
    module = checkpoint.module
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    batch: Mapping[str, Tensor] = {"pixel_values": torch.zeros(1, *shape, dtype=dtype)}
    try:
        with torch.no_grad():
            checkpoint.forward(module, batch)
    except NotImplementedError:  # weights without values (a sketch): nothing can be tried
        return True
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return True
