"""Tasks: how a model is called on a batch, and which of its outputs the labels belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from slt_compress.checkpoints import Family, Task
from slt_compress.checkpoints.casting import fitted
from slt_compress.checkpoints.moving import to_device as to_device

Batch = Mapping[str, Tensor]


Forward = Callable[[nn.Module, Batch], Tensor]


# Their own text is their labels.
NEXT_TOKEN_TASKS: tuple[Task, ...] = ("causal-lm", "image-text-to-text")


LANGUAGE_TASKS: tuple[Task, ...] = (*NEXT_TOKEN_TASKS, "masked-lm", "seq2seq")


IGNORED = -100


def forward_of(family: Family, task: Task) -> Forward:
    """How a family is called on a batch; gives logits, or hidden states for task `features`.

    A module of the user's own takes the tensors of the batch in their order.
    """
    if family == "module":
        return lambda module, batch: _tensor(module(*batch.values()))
    run = _FORWARDS.get(task, _logits) if family == "transformers" else _pictures
    return lambda module, batch: run(module, fitted(module, batch))


def _pictures(module: nn.Module, batch: Batch) -> Tensor:
    return _tensor(module(batch["pixel_values"]))


def _logits(module: nn.Module, batch: Batch) -> Tensor:
    return _tensor(module(**{k: v for k, v in batch.items() if k != "labels"}).logits)


def _seq2seq(module: nn.Module, batch: Batch) -> Tensor:
    # the labels make the decoder's inputs: transformers shifts them itself
    return _tensor(module(**batch).logits)


def _features(module: nn.Module, batch: Batch) -> Tensor:
    output = module(**{k: v for k, v in batch.items() if k != "labels"})
    return _tensor(output[0])


def _matched(module: nn.Module, batch: Batch) -> Tensor:
    """How well each picture of the batch goes with each text, and the reverse: [2 N, N]."""
    output = module(**{k: v for k, v in batch.items() if k != "labels"})
    return torch.cat((_tensor(output.logits_per_image), _tensor(output.logits_per_text)))


_FORWARDS: Mapping[Task, Forward] = {
    "features": _features,
    "seq2seq": _seq2seq,
    "zero-shot-image-classification": _matched,
}


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"the model gave {type(value).__name__} where a tensor was expected")
    return value


def rows(task: Task, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Predictions as rows [M, classes] with their labels [M], ignored positions left out.

    A causal model predicts the next token, so its logits are shifted against the labels. Without
    labels every row is given.
    """
    if labels is not None and task in NEXT_TOKEN_TASKS:
        logits, labels = logits[:, :-1], labels[:, 1:]
    if logits.dim() > 2:
        logits = logits.reshape(-1, logits.shape[-1])
        labels = None if labels is None else labels.reshape(-1)
    if labels is None or labels.is_floating_point():
        return logits, labels
    known = labels != IGNORED
    return (logits, labels) if bool(known.all()) else (logits[known], labels[known])
