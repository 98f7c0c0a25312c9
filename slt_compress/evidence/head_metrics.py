"""Metrics of heads that are no softmax: several classes at once, and numbers.

A metric that cannot vary on the given labels is left out: a correlation with constant labels, the
precision of a class that is in every row or in none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slt_compress.checkpoints.tasks import Head
from slt_compress.evidence.head_losses import head_divergence, head_loss
from slt_compress.evidence.losses import relative_error

Rows = list[Tensor]


class HeadSums:
    """Outputs and labels of all batches; the metrics follow from them at the end."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._outputs: Rows = []
        self._labels: Rows = []
        self._compared: Rows = []
        self._dense: Rows = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Rows [M, C] with their labels [M, C], or [M] for a single number."""
        self._outputs.append(logits.float().cpu())
        self._labels.append(labels.float().cpu().reshape(logits.shape))

    def compare(self, logits: Tensor, dense: Tensor) -> None:
        """Rows [M, C] with those of the dense network."""
        self._compared.append(logits.float().cpu())
        self._dense.append(dense.float().cpu())

    def metrics(self) -> dict[str, float]:
        """By name; see `evaluate`."""
        found: dict[str, float] = {}
        if self._outputs:
            outputs, labels = torch.cat(self._outputs), torch.cat(self._labels)
            found |= _flags(outputs, labels) if self._head == "flags" else _numbers(outputs, labels)
            found["loss"] = float(head_loss(self._head, outputs, labels))
        if not self._compared:
            return found
        outputs, dense = torch.cat(self._compared), torch.cat(self._dense)
        if self._head == "flags":
            found["agreement"] = float(((outputs > 0) == (dense > 0)).double().mean())
            found["kl"] = float(head_divergence("flags", outputs, dense))
        elif not self._outputs:
            found |= _numbers(outputs, dense)
            found["loss"] = float(relative_error(outputs, dense))
        return found


def _numbers(outputs: Tensor, wanted: Tensor) -> dict[str, float]:
    """Correlations, mean over the outputs whose wanted values vary."""
    varied = [c for c in range(wanted.shape[1]) if bool((wanted[:, c] != wanted[0, c]).any())]
    if not varied:
        return {}
    pairs = [(outputs[:, c].double(), wanted[:, c].double()) for c in varied]
    return {
        "pearson": sum(correlation(a, b) for a, b in pairs) / len(pairs),
        "spearman": sum(correlation(ranks(a), ranks(b)) for a, b in pairs) / len(pairs),
    }


def correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's correlation of two vectors (float64); 0 where one of them is constant."""
    first, second = first - first.mean(), second - second.mean()
    norm = float(first.square().sum().sqrt() * second.square().sum().sqrt())
    return float(first @ second) / norm if norm > 0.0 else 0.0


def ranks(values: Tensor) -> Tensor:
    """Rank of every value, float64; equal values share the mean of their ranks."""
    unique: Any = torch.unique
    _, place, counts = unique(values, return_inverse=True, return_counts=True)
    middle: Tensor = counts.cumsum(0).double() - (counts.double() - 1.0) / 2.0
    return middle[place]


def _flags(outputs: Tensor, labels: Tensor) -> dict[str, float]:
    """F1 of all decisions together, and the mean average precision over the classes."""
    decided, given = outputs > 0, labels > 0.5
    both = int((decided & given).sum())
    total = int(decided.sum()) + int(given.sum())
    found = {"f1": 2.0 * both / total} if bool(given.any()) else {}
    share = given.double().mean(0)
    varied = [c for c in range(labels.shape[1]) if 0.0 < float(share[c]) < 1.0]
    if varied:
        each = [average_precision(outputs[:, c], given[:, c]) for c in varied]
        found["map"] = sum(each) / len(each)
    return found


def average_precision(scores: Tensor, given: Tensor) -> float:
    """Sum over the scores, from the highest, of precision times the gain of recall.

    Equal scores are one threshold, as in scikit-learn's `average_precision_score`.
    """
    order = scores.argsort(descending=True)
    hits = given[order].double().cumsum(0)
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[order][1:] != scores[order][:-1]
    hits, seen = hits[last], (torch.arange(len(scores)) + 1).double()[last]
    gains = torch.diff(hits, prepend=torch.zeros(1, dtype=torch.float64)) / hits[-1]
    return float((hits / seen * gains).sum())
