"""What is about to be written as an artifact: its manifest, and what that says of every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.artifacts.formats import Format, MaskOnly, find_pattern
from slt_compress.artifacts.manifest import MASK_FORMAT, manifest_head
from slt_compress.artifacts.state import State
from slt_compress.checkpoints import Checkpoint
from slt_compress.masks import Masks, count_kept
from slt_compress.storage.files import dtype_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is about to be written, and how."""

    checkpoint: Checkpoint
    module: nn.Module
    masks: Masks
    state: State
    format: Format | MaskOnly
    values_dtype: torch.dtype | None
    max_shard_size: int
    buffers: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]

    def manifest(self, ticket_hash: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """What is known before a tensor is written."""
        return manifest_head(
            self.checkpoint, format=self.format.name, ticket_hash=ticket_hash,
            provenance=provenance, dense_nbytes=self.state.nbytes, ties=self.state.ties,
        )  # fmt: skip

    def entry(self, name: str) -> dict[str, Any]:
        """What the manifest says of one tensor."""
        tensor = self.state.shell(name)
        facts = {"shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype), "format": "dense"}
        if name not in self.masks:
            return facts
        mask, stored = self.masks[name], self.stored_dtype(tensor)
        kept = count_kept(mask)
        if isinstance(self.format, MaskOnly):
            flip = self.masks.flips.get(name)
            flips = {} if flip is None else {"flips": count_kept(flip)}
            return {**facts, "format": MASK_FORMAT, "kept": kept, **flips}
        pattern = find_pattern(mask) if self.format.patterned else None
        codec = self.format.choose(tuple(tensor.shape), kept, stored, pattern)
        rounded = {} if stored is tensor.dtype else {"values": dtype_name(stored)}
        return {**facts, "format": codec.name, "kept": kept, **rounded}

    def stored_dtype(self, tensor: Tensor) -> torch.dtype:
        """The dtype of a site's values in the file: never a wider one than they have."""
        narrower = self.values_dtype
        if narrower is None or not tensor.is_floating_point():
            return tensor.dtype
        return narrower if narrower.itemsize < tensor.dtype.itemsize else tensor.dtype
