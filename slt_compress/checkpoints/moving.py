"""Batches, of whatever kind people make them, on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a nested batch on a device, images with their channels last.

    Mappings, lists, tuples, named tuples and dataclasses keep their type; anything else with a
    method `to` is asked to move itself. Convolutions are faster with channels last on a CPU
    (benchmarks/steps.py).
    """
    if isinstance(batch, Tensor):
        if batch.is_inference() and not torch.is_inference_mode_enabled():
            batch = batch.clone()  # no gradient passes the original
        images = batch.dim() == 4
        return batch.to(
            device, memory_format=torch.channels_last if images else torch.preserve_format
        )
    if isinstance(batch, PackedSequence):  # a named tuple with rules of its own
        moved: Any = batch.to
        return moved(device)
    if isinstance(batch, Mapping):
        return _mapping(batch, {key: to_device(value, device) for key, value in batch.items()})
    if isinstance(batch, list | tuple):
        return _sequence(batch, (to_device(value, device) for value in batch))
    if is_dataclass(batch) and not isinstance(batch, type):
        return _fields(batch, device)
    move = getattr(batch, "to", None)
    return move(device) if callable(move) else batch


def _mapping(batch: Mapping[Any, Any], moved: dict[Any, Any]) -> Any:
    """The moved entries in a mapping of the same type, where that can be copied and set."""
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return moved
    copied = copy(batch)
    for key, value in moved.items():
        copied[key] = value
    return copied


def _sequence(batch: list[Any] | tuple[Any, ...], moved: Iterator[Any]) -> Any:
    named = isinstance(batch, tuple) and hasattr(batch, "_fields")
    return type(batch)(*moved) if named else type(batch)(moved)


def _fields(batch: Any, device: torch.device) -> Any:
    copied = copy(batch)
    for field in fields(batch):
        # past the lock of a frozen one: the copy is not in anybody's hands yet
        object.__setattr__(copied, field.name, to_device(getattr(batch, field.name), device))
    return copied
