"""Inputs of the model in a ticket or artifact: the stored probe, or generated ones."""

from __future__ import annotations

import torch
from torch import Tensor

from slt_compress.artifacts import PROBE
from slt_compress.checkpoints import Checkpoint
from slt_compress.data import modalities_of
from slt_compress.data.image_pipelines import pipeline_of
from slt_compress.data.tokens import DEFAULT_LENGTH, context_of, vocabulary_of
from slt_compress.errors import ArtifactError, DataError
from slt_compress.runtime.opening import Opened
from slt_compress.storage.probe import Probe, read_probe_file
from slt_compress.tickets import read_probe


def stored_probe(opened: Opened) -> Probe | None:
    """The probe of an opened ticket or artifact; None where none is stored.

    Raises:
        TicketError: that of a ticket is missing or damaged.
        ArtifactError: that of an artifact is damaged.
    """
    if opened.ticket is not None:
        return read_probe(opened.ticket)
    file = opened.path / PROBE
    if not file.is_file():
        return None
    return read_probe_file(file, ArtifactError)


def example_inputs(opened: Opened, batch: int) -> dict[str, Tensor]:
    """Inputs of `batch` examples: those of the stored probe, repeated, or else generated ones.

    Generated are images of noise, or random tokens: 128 of them, or as many as the model takes.

    Raises:
        TicketError, ArtifactError: the probe is damaged.
        DataError: there is none, and the model reads neither images nor text.
    """
    probe = stored_probe(opened)
    if probe is None:
        return _generated(opened.checkpoint, batch)
    examples = min((len(value) for value in probe.inputs.values() if value.dim()), default=0)
    if not examples:
        raise DataError(f"the probe in {opened.path} holds no example")
    rows = torch.arange(batch) % examples
    return {name: value[rows] if value.dim() else value for name, value in probe.inputs.items()}


def _generated(checkpoint: Checkpoint, batch: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    kind = None if checkpoint.family == "module" else modalities_of(checkpoint)[0]
    if kind == "image":
        return {
            "pixel_values": torch.randn(batch, *pipeline_of(checkpoint).size, generator=generator)
        }
    vocabulary = vocabulary_of(checkpoint)
    if kind != "text" or vocabulary is None:
        raise DataError(
            f"no probe was stored, and inputs of {checkpoint.source} cannot be generated: only "
            "images and text can"
        )
    length = min(DEFAULT_LENGTH, context_of(checkpoint) or DEFAULT_LENGTH)
    tokens = torch.randint(vocabulary, (batch, length), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return {**inputs, "labels": tokens} if checkpoint.task == "seq2seq" else inputs
