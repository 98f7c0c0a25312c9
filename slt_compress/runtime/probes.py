"""Inputs of the model in a ticket or artifact: the stored probe, or others like it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from slt_compress.artifacts import PROBE, is_artifact
from slt_compress.checkpoints import Checkpoint
from slt_compress.data import modalities_of
from slt_compress.data.image_pipelines import pipeline_of
from slt_compress.data.tokens import DEFAULT_LENGTH, context_of, vocabulary_of
from slt_compress.errors import ArtifactError, DataError
from slt_compress.storage.files import read_safetensors
from slt_compress.tickets import read_probe


def stored_probe(folder: Path) -> dict[str, Tensor]:
    """Inputs by argument name, and `logits` of the masked model on them; empty where none is.

    Raises:
        TicketError: that of a ticket is missing or damaged.
        ArtifactError: that of an artifact is damaged.
    """
    if not is_artifact(folder):
        return read_probe(folder)
    path = folder / PROBE
    return read_safetensors(path, ArtifactError) if path.is_file() else {}


def example_inputs(folder: Path, checkpoint: Checkpoint, batch: int) -> dict[str, Tensor]:
    """Inputs of `batch` examples: the stored probe's, over and over, or else made-up ones.

    Made up are pictures of noise, and random tokens: 128 of them, or as many as the model takes.

    Raises:
        TicketError, ArtifactError: the probe is damaged.
        DataError: there is none, and the model reads neither pictures nor text.
    """
    stored = {name: value for name, value in stored_probe(folder).items() if name != "logits"}
    if not stored:
        return _made_up(checkpoint, batch)
    examples = min((len(value) for value in stored.values() if value.dim()), default=0)
    if not examples:
        raise DataError(f"the probe in {folder} holds no example")
    rows = torch.arange(batch) % examples
    return {name: value[rows] if value.dim() else value for name, value in stored.items()}


def _made_up(checkpoint: Checkpoint, batch: int) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    kind = None if checkpoint.family == "module" else modalities_of(checkpoint)[0]
    if kind == "image":
        return {"pixel_values": torch.randn(batch, *pipeline_of(checkpoint).size, generator=chance)}
    vocabulary = vocabulary_of(checkpoint)
    if kind != "text" or vocabulary is None:
        raise DataError(
            f"no probe was stored, and inputs of {checkpoint.source} cannot be made up: only "
            "pictures and text can"
        )
    length = min(DEFAULT_LENGTH, context_of(checkpoint) or DEFAULT_LENGTH)
    tokens = torch.randint(vocabulary, (batch, length), generator=chance)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {**inputs, "labels": tokens} if checkpoint.task == "seq2seq" else inputs
