"""Pipelines: how each family of models wants its images prepared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.data.image_modes import mode_for
from slt_compress.data.image_processors import ImageProcessor
from slt_compress.data.processors import has_processor

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint


Prepare = Callable[[Sequence[Image.Image]], Tensor]
"""Images to one tensor [N, C, H, W]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How images become inputs.

    Attributes:
        prepare: images to the tensor that is kept in memory (uint8 or float).
        finish: the kept tensor to the input, vectorised over the batch.
        size, mean, std: (C, H, W) of the inputs, and the normalisation of `finish`.
        note: assumptions, for the report; "" if there are none.
    """

    prepare: Prepare
    finish: Callable[[Tensor], Tensor]
    size: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    note: str = ""


def pipeline_of(checkpoint: Checkpoint) -> Pipeline:
    """The preprocessing with which the checkpoint was trained, or the family's default.

    Raises:
        DataError: the checkpoint's preprocessing files cannot be used.
    """
    if checkpoint.family == "reference":
        net = REFERENCE[str(checkpoint.config["architecture"])]
        return _reference(checkpoint.source, net.input_size, net.mean, net.std)
    if checkpoint.family == "timm":
        return _timm(checkpoint)
    return _transformers(checkpoint)


def _reference(
    source: str, size: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]
) -> Pipeline:
    """Grey by ITU-R 601 luma, bilinear resizing (both Pillow's), / 255, then mean and std."""
    channels, height, width = size
    mode = mode_for(channels, source)
    centre = torch.tensor(mean).view(-1, 1, 1)
    scale = torch.tensor(std).view(-1, 1, 1)

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([_pixels(image, mode, height, width) for image in images])

    def finish(pixels: Tensor) -> Tensor:
        return (pixels.float() / 255 - centre) / scale

    return Pipeline(prepare=prepare, finish=finish, size=size, mean=mean, std=std)


def _pixels(image: Image.Image, mode: str, height: int, width: int) -> Tensor:
    image = image.convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if mode == "L" else pixels.permute(2, 0, 1)


def _timm(checkpoint: Checkpoint) -> Pipeline:
    """timm's evaluation transform for the pretrained configuration of the model."""
    from timm.data import create_transform, resolve_data_config

    said = {**_mapping(checkpoint.config.get("pretrained_cfg"))}
    arguments = _mapping(checkpoint.config.get("model_args"))
    config = resolve_data_config({}, pretrained_cfg=said or None, model=checkpoint.module)
    channels = int(arguments.get("in_chans") or config["input_size"][0])
    side = arguments.get("img_size") or _patch_size(checkpoint.module)
    height, width = (side, side) if isinstance(side, int) else side or config["input_size"][1:]
    for key in ("mean", "std"):
        if channels != len(config[key]):
            config[key] = (sum(config[key]) / len(config[key]),) * channels
    config["input_size"] = (channels, int(height), int(width))
    transform: Any = create_transform(**config, is_training=False)
    mode = mode_for(channels, checkpoint.source)

    def prepare(images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([transform(image.convert(mode)) for image in images])

    return Pipeline(
        prepare=prepare, finish=lambda pixels: pixels, size=config["input_size"],
        mean=config["mean"], std=config["std"],
    )  # fmt: skip


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _patch_size(module: torch.nn.Module) -> tuple[int, int] | None:
    """The input size of a timm transformer, which its config need not give."""
    side = getattr(getattr(module, "patch_embed", None), "img_size", None)
    return (int(side[0]), int(side[1])) if isinstance(side, (tuple, list)) else None


def _transformers(checkpoint: Checkpoint) -> Pipeline:
    """The checkpoint's image processor, or plain resizing with mean and std 0.5."""
    folder, config = checkpoint.folder, checkpoint.config
    side = config.get("image_size")
    height, width = (side, side) if isinstance(side, int) else tuple(side or (224, 224))[:2]
    if folder is not None and has_processor(folder):
        processor = ImageProcessor(folder, checkpoint, (height, width) if side else None)
        return Pipeline(
            prepare=processor, finish=lambda pixels: pixels, note=processor.note,
            size=(processor.channels, *processor.size), mean=processor.mean, std=processor.std,
        )  # fmt: skip
    channels = int(config.get("num_channels") or 3)
    half = [0.5] * channels
    plain = _reference(checkpoint.source, (channels, height, width), half, half)
    note = (
        f"{checkpoint.source} has no preprocessor_config.json: images are resized to "
        f"{height} x {width} and scaled with mean 0.5 and standard deviation 0.5."
    )
    return replace(plain, note=note)
