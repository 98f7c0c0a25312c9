"""Sampling: as many test examples as a metric needs to be sure, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from typing import Any

from torch import Tensor

# A share of so many rows is within one percentage point of the true one 19 times of 20, whatever it
# is: 1.96 standard deviations of at most 1/2 over the root of the rows are 0.01.
ROWS = ceil((1.96 * 0.5 / 0.01) ** 2)


class FirstRows:
    """The first batches that hold `rows` rows: labels, or examples where there are none.

    Attributes:
        examples: how many examples the last pass over the batches gave.
        cut: whether that pass left any out.
    """

    def __init__(self, batches: Iterable[Any], rows: int = ROWS) -> None:
        self._batches, self._rows = batches, rows
        self.examples, self.cut = 0, False

    def __iter__(self) -> Iterator[Any]:
        self.examples, self.cut, seen = 0, False, 0
        for batch in self._batches:
            if seen >= self._rows:
                self.cut = True
                return
            seen += _rows(batch)
            self.examples += _examples(batch)
            yield batch


def _rows(batch: Any) -> int:
    """The labels of a batch that count (not those below 0, which losses leave out)."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor):
        return _examples(batch)
    return labels.numel() if labels.is_floating_point() else int((labels >= 0).count_nonzero())


def _examples(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return _examples(batch[0]) if isinstance(batch, list | tuple) and batch else 1
