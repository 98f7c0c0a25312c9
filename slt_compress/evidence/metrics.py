"""Metrics of dense, masked and control models on held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice
from math import exp, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from slt_compress.anatomy.states import evaluating
from slt_compress.checkpoints import Task
from slt_compress.checkpoints.tasks import (
    LANGUAGE_TASKS,
    NEXT_TOKEN_TASKS,
    Batch,
    Forward,
    Head,
    rows,
    to_device,
)
from slt_compress.evidence.head_metrics import HeadSums
from slt_compress.evidence.losses import divergence, label_loss, relative_error

Metrics = dict[str, float]
Reference = Callable[[], AbstractContextManager[None]]
# Bytes of dense rows that are kept while masks are compared with them.
_REMEMBERED = 64 << 20
# Logits that a loss is computed of at once.
_PART = 1 << 21


class Remembering:
    """A reference that keeps the dense rows of one set of batches, as many as fit in `limit` bytes.

    Several masks are compared with the same dense network on the same batches.
    """

    def __init__(self, reference: Reference, limit: int = _REMEMBERED) -> None:
        self._reference, self._left = reference, limit
        self._rows: dict[int, Tensor] = {}

    def __call__(self) -> AbstractContextManager[None]:
        """The context in which the module is the dense network."""
        return self._reference()

    def remembered(self, index: int) -> Tensor | None:
        """The dense rows of a batch, if they are kept."""
        return self._rows.get(index)

    def remember(self, index: int, dense: Tensor) -> None:
        """Keep the dense rows of a batch, if they fit."""
        if dense.nbytes <= self._left:
            self._left -= dense.nbytes
            self._rows[index] = dense


def evaluate(
    module: nn.Module,
    batches: Iterable[Batch],
    forward: Forward,
    task: Task,
    *,
    reference: Reference | None = None,
    head: Head = "classes",
) -> Metrics:
    """Metrics of `module` as it stands, in eval mode, on `batches`.

    `accuracy` and `loss` (nats) of labelled classes; `loss` and `perplexity` per token of a
    language model; `pearson` and `loss` (mean squared error) of a regression. With `reference`,
    a context in which the module is the dense network, also `agreement` (share of rows with the
    same top class) and `kl` (nats, of the dense rows to these); for task `features` the `loss` is
    the squared error relative to the dense hidden states.

    For a `head` of several classes at once: `f1` (all decisions together), `map` (mean average
    precision) and `loss` (binary cross entropy), and with `reference` the share of decisions that
    agree. For a `head` of numbers: `pearson`, `spearman` and `loss`, of the labels or, where there
    are none, of the dense outputs (`loss` relative to their mean square).
    """
    if head != "classes":
        return _of_head(module, batches, forward, task, reference, head)
    sums = _Sums()
    device = next(module.parameters()).device
    # Not inference_mode: a table that a module caches in its first forward is used in training.
    with torch.no_grad(), evaluating(module):
        for index, batch in enumerate(batches):
            moved = to_device(batch, device)
            labels = moved.get("labels")
            logits, known = rows(task, forward(module, moved), labels)
            if reference is not None:
                dense = reference.remembered(index) if isinstance(reference, Remembering) else None
                if dense is None:
                    with reference():
                        dense, _ = rows(task, forward(module, moved), labels)
                    if isinstance(reference, Remembering):
                        reference.remember(index, dense)
                sums.compare(task, logits, dense)
            if known is not None and task != "features":
                sums.add(logits, known)
    return sums.metrics(task)


def _of_head(
    module: nn.Module,
    batches: Iterable[Batch],
    forward: Forward,
    task: Task,
    reference: Reference | None,
    head: Head,
) -> Metrics:
    """As `evaluate`, for a head that is no softmax."""
    sums, device = HeadSums(head), next(module.parameters()).device
    with torch.no_grad(), evaluating(module):
        for batch in batches:
            moved = to_device(batch, device)
            logits, known = rows(task, forward(module, moved), moved.get("labels"))
            if reference is not None:
                with reference():
                    dense, _ = rows(task, forward(module, moved), moved.get("labels"))
                sums.compare(logits, dense)
            if known is not None:
                sums.add(logits, known)
    return sums.metrics()


class _Sums:
    """Running sums over batches; the metrics follow from them at the end."""

    def __init__(self) -> None:
        self.rows = self.compared = 0
        self.correct = self.same = 0
        self.choices = 2
        self.loss = self.kl = 0.0
        self.pairs: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        count = labels.numel()
        self.rows += count
        if count:
            for some, known in _in_parts(logits, labels):
                self.loss += float(label_loss(some, known)) * known.numel()
        if labels.is_floating_point():
            self.pairs.append((logits.float().cpu().reshape(-1), labels.float().cpu().reshape(-1)))
        else:
            self.correct += int((logits.argmax(-1) == labels).sum())

    def compare(self, task: Task, logits: Tensor, dense: Tensor) -> None:
        self.compared += len(logits)
        if task == "features":
            self.kl += float(relative_error(logits, dense)) * len(logits)
        elif len(logits):
            self.choices = logits.shape[-1]
            self.same += int((logits.argmax(-1) == dense.argmax(-1)).sum())
            for some, wanted in _in_parts(logits, dense):
                self.kl += float(divergence(some, wanted)) * len(some)

    def metrics(self, task: Task) -> Metrics:
        metrics: Metrics = {}
        if self.pairs:
            metrics["pearson"] = _pearson(self.pairs)
        elif self.rows and task not in (*NEXT_TOKEN_TASKS, "seq2seq"):
            metrics["accuracy"] = self.correct / self.rows
        if self.rows:
            metrics["loss"] = self.loss / self.rows
            if task in LANGUAGE_TASKS:
                metrics["perplexity"] = exp(min(metrics["loss"], 700.0))
        if self.compared and task == "features":
            metrics["loss"] = self.kl / self.compared
        elif self.compared and not self.pairs:
            if self.choices > 1:  # with one output all rows agree
                metrics["agreement"] = self.same / self.compared
            metrics["kl"] = self.kl / self.compared
        return metrics


def _in_parts(logits: Tensor, other: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Rows of logits and what goes with them, in parts that a loss makes small copies of."""
    count = max(1, _PART // max(1, logits.shape[-1])) if logits.dim() > 1 else len(logits)
    return zip(torch.split(logits, count), torch.split(other, count), strict=True)


def _pearson(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Pearson's correlation; 0 where either side is constant."""
    predicted = torch.cat([a for a, _ in pairs]).double()
    wanted = torch.cat([b for _, b in pairs]).double()
    predicted, wanted = predicted - predicted.mean(), wanted - wanted.mean()
    norm = sqrt(float(predicted.square().sum()) * float(wanted.square().sum()))
    return float((predicted * wanted).sum()) / norm if norm > 0 else 0.0


def reestimate_batchnorm(
    module: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    *,
    limit: int = 50,
) -> dict[str, Tensor]:
    """Replace BatchNorm's running statistics by their mean over at most `limit` batches.

    The statistics of the dense network are wrong for a masked one. Pass training batches only.
    Returns the new buffers (CPU) by name; empty where the module has no such statistics.
    """
    norms = {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.running_mean is not None
    }
    if not norms:
        return {}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    hooks: list[RemovableHandle] = []
    device = next(module.parameters()).device
    try:
        with torch.no_grad(), evaluating(module):
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # torch's cumulative average
                norm.train()
                hooks.append(norm.register_forward_pre_hook(_rest_on_single_values))
            for batch in islice(batches, limit):
                forward(module, to_device(batch, device))
    finally:
        for hook in hooks:
            hook.remove()
        for name, norm in norms.items():
            norm.momentum = momenta[name]
    return {
        f"{name}.{key}": buffer.detach().cpu().clone()
        for name, norm in norms.items()
        for key, buffer in norm.named_buffers(recurse=False)
    }


def _rest_on_single_values(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Leave out inputs of one value per channel: they have no variance, and torch refuses them."""
    value = inputs[0]
    norm.training = not (isinstance(value, Tensor) and value.numel() <= value.shape[1])
