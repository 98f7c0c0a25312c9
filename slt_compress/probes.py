"""The stored probe of a ticket or artifact: inputs of its model, and what it made of them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from slt_compress.artifact import PROBE, is_artifact
from slt_compress.errors import ArtifactError
from slt_compress.files import read_safetensors
from slt_compress.ticket import read_probe


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
