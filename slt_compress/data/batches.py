"""Batches: seeded, the same on every run, made from examples on demand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slt_compress.checkpoints.tasks import Head

Batch = dict[str, Tensor]
"""Model inputs by the names of the model's arguments, and "labels" if there are any."""


class Examples(Protocol):
    """Something that can be cut into batches."""

    def __len__(self) -> int: ...

    def batch(self, positions: Tensor, chance: torch.Generator) -> Batch:
        """The examples at `positions` (int64 [N]); `chance` is for anything random."""
        ...


def generator(*words: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of `words`."""
    digest = hashlib.sha256(":".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """A split cut into batches; a pure function of (examples, batch size, seed, epoch).

    With `shuffle`, `epoch(e)` permutes by (seed, e) and drops the last short batch (a split smaller
    than one batch gives one short batch). It uses `augmented`, the changed version of the examples,
    if there is one. Iterating always gives every example of `source` in order.
    """

    source: Examples = field(repr=False)
    augmented: Examples | None = field(default=None, repr=False)
    batch_size: int
    seed: int = 0
    shuffle: bool = False

    @property
    def examples(self) -> int:
        """How many examples the split has."""
        return len(self.source)

    def __len__(self) -> int:
        """Batches in one `epoch`."""
        if self.shuffle:
            return max(1, self.examples // self.batch_size)
        return -(-self.examples // self.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number` (from 0)."""
        if not self.shuffle:
            yield from self
            return
        order = torch.randperm(
            self.examples, generator=generator("order", self.seed, number), dtype=torch.int64
        )
        source = self.source if self.augmented is None else self.augmented
        for index, chunk in enumerate(torch.split(order, self.batch_size)[: len(self)]):
            yield source.batch(chunk, generator("batch", self.seed, number, index))

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(self.examples)
        for index, chunk in enumerate(torch.split(order, self.batch_size)):
            yield self.source.batch(chunk, generator("in order", self.seed, index))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchData:
    """A data set made ready for one checkpoint.

    Attributes:
        spec: the data set as the user named it.
        train: the batches that the search trains on.
        held_out: a slice of the training split for selection, never trained on.
        test: the batches on which the reported metrics are measured.
        labels_match: whether "labels" in the batches are classes (or values) of the model's head;
            if not, the batches have no labels.
        label_note: why the labels do not match; "" if they do.
        test_split: where `test` comes from.
        splits: number of examples in train, held_out and test.
        head: what the model's outputs are, which decides on losses and metrics.
        overview: what is read and measured, one line for the user.
        warnings: what looks wrong about the data, a sentence each.
        notes: decisions that the user did not ask for, a sentence each, for the report.
    """

    spec: str
    train: Batches
    held_out: Batches
    test: Batches
    labels_match: bool
    label_note: str
    test_split: str
    splits: Mapping[str, int]
    notes: tuple[str, ...] = ()
    head: Head = "classes"
    overview: str = ""
    warnings: tuple[str, ...] = ()
