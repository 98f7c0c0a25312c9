"""What is about to be written as an artifact: its manifest, and the entry of every tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from slt_compress.artifacts.content import ArtifactContent
from slt_compress.artifacts.entries import Entry
from slt_compress.artifacts.formats import MASK_FORMAT, Format, MaskOnly, find_pattern
from slt_compress.artifacts.manifest import manifest_head
from slt_compress.artifacts.state import State
from slt_compress.masks import count_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is about to be written, and how."""

    content: ArtifactContent
    state: State
    format: Format | MaskOnly
    values_dtype: torch.dtype | None
    max_shard_size: int

    def manifest(self) -> dict[str, Any]:
        """What is known before a tensor is written."""
        content, state = self.content, self.state
        head = manifest_head(
            content.checkpoint, content.evidence, format=self.format.name,
            dense_nbytes=state.nbytes, ties=state.ties,
        )  # fmt: skip
        folds = {name: fold.to_dict() for name, fold in content.folds.items()}
        return {**head, "folds": folds} if folds else head

    def entry(self, name: str) -> Entry:
        """What the manifest says of one tensor."""
        shell, masks = self.state.shell(name), self.content.masks
        entry = Entry.whole(shell)
        if name not in masks:
            return entry
        mask, stored = masks[name], self.stored_dtype(shell)
        kept = count_kept(mask)
        if isinstance(self.format, MaskOnly):
            flip = masks.flips.get(name)
            flips = None if flip is None else count_kept(flip)
            return replace(entry, format=MASK_FORMAT, kept=kept, flips=flips)
        order = self.content.orders.get(name)
        pattern = find_pattern(mask, order) if self.format.patterned else None
        codec = self.format.choose(entry.shape, kept, stored, pattern)
        rounded = None if stored is shell.dtype else stored
        return replace(entry, format=codec.name, kept=kept, values=rounded)

    def stored_dtype(self, tensor: Tensor) -> torch.dtype:
        """The dtype of a site's values in the file: never wider than their own."""
        narrower = self.values_dtype
        if narrower is None or not tensor.is_floating_point():
            return tensor.dtype
        return narrower if narrower.itemsize < tensor.dtype.itemsize else tensor.dtype
