"""Inputs that a model of any family takes, made up from its config and signature."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2
TOKENS = 8

Inputs = dict[str, Tensor]


def found_in(config: Mapping[str, Any], *names: str) -> Iterator[Any]:
    """Values of the first level at which a config has one of these keys, outermost first."""
    level = [config]
    while level:
        for part in level:
            yield from (part[name] for name in names if part.get(name) is not None)
        level = [v for part in level for v in part.values() if isinstance(v, Mapping)]


def first(config: Mapping[str, Any], default: int, *names: str) -> int:
    """The first whole number under one of these keys."""
    for value in found_in(config, *names):
        while isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return default


def image_size(config: Mapping[str, Any]) -> tuple[int, int]:
    for value in found_in(config, "image_size", "img_size", "input_size"):
        if isinstance(value, Mapping):
            value = [value.get("height"), value.get("width")]
        if isinstance(value, int):
            return value, value
        if isinstance(value, list | tuple) and len(value) >= 2 and isinstance(value[-1], int):
            return value[-2], value[-1]
    return 64, 64


def candidates(module: nn.Module, config: Mapping[str, Any]) -> Iterator[Inputs]:
    """Sets of inputs to try on a model of transformers; the first that it takes is the right one.

    The same ones at every call.
    """
    torch.manual_seed(0)
    accepted = set(inspect.signature(module.forward).parameters)
    vocabulary = first(config, 32, "vocab_size")
    words = torch.randint(5, max(6, min(vocabulary, 30)), (BATCH, TOKENS))
    height, width = image_size(config)
    channels = first(config, 3, "num_channels", "in_channels", "in_chans", "num_input_channels")
    pictures = torch.randn(BATCH, channels, height, width)
    mels = first(config, 80, "num_mel_bins", "input_feat_per_channel", "feature_size", "input_dim")
    frames = 2 * first(config, 32, "max_source_positions")
    text: Inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    decoder: Inputs = {"decoder_input_ids": words}
    video = pictures.unsqueeze(1).expand(-1, first(config, 4, "num_frames"), -1, -1, -1)
    length = first(config, 64, "max_length")
    singles: tuple[Inputs, ...] = (
        text,
        {"pixel_values": pictures},
        {**text, "pixel_values": pictures},
        {"pixel_values": video},
        {"pixel_values_videos": video},
        {"input_values": torch.randn(BATCH, 1600)},
        {"input_values": torch.randn(BATCH, 1, 1600)},
        {"input_values": torch.randn(BATCH, length, mels)},
        {"input_features": torch.randn(BATCH, mels, frames)},
        {"input_features": torch.randn(BATCH, 64, mels)},
        {"spectrogram": torch.randn(BATCH, 32, mels)},
        {"past_values": torch.randn(BATCH, first(config, 32, "context_length"), channels)},
    )
    main = str(getattr(module, "main_input_name", "input_ids"))
    for wanted in (True, False):
        for inputs in singles:
            known = {name: value for name, value in inputs.items() if name in accepted}
            if not known or (main in known) is not wanted:
                continue
            if "decoder_input_ids" in accepted:
                yield {**known, **decoder}
            yield known


def pictures_for(size: int) -> Inputs:
    """Pictures for a model of timm."""
    torch.manual_seed(0)
    return {"x": torch.randn(BATCH, 3, size, size)}


def tensors(output: Any) -> list[Tensor]:
    """All floating tensors of an output, however it is nested."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, Mapping):
        output = output.values()
    if isinstance(output, list | tuple) or not isinstance(output, str | bytes | int | float | None):
        try:
            return [tensor for value in output for tensor in tensors(value)]
        except TypeError:
            return []
    return []
