"""Tasks: how a model is called on a batch, and which of its outputs the labels belong to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from slt_compress.checkpoints.casting import fitted
from slt_compress.checkpoints.library_config import Config
from slt_compress.checkpoints.moving import to_device as to_device

Family = Literal["transformers", "timm", "reference", "module"]
Task = Literal[
    "image-classification",
    "text-classification",
    "causal-lm",
    "masked-lm",
    "seq2seq",
    "token-classification",
    "audio-classification",
    "visual-question-answering",
    "zero-shot-image-classification",
    "image-text-to-text",
    "features",
]
TASKS: tuple[Task, ...] = get_args(Task)

Head = Literal["classes", "flags", "numbers"]
"""What the outputs of a head are: scores of classes of which one is right, of classes of which any
may be right, or numbers."""

# `problem_type` of transformers, and the tasks whose heads have one.
_PROBLEMS: Mapping[str, Head] = {
    "single_label_classification": "classes",
    "multi_label_classification": "flags",
    "regression": "numbers",
}
_WITH_PROBLEM: tuple[Task, ...] = (
    "image-classification",
    "text-classification",
    "audio-classification",
)

Batch = Mapping[str, Tensor]
Forward = Callable[[nn.Module, Batch], Tensor]

NEXT_TOKEN_TASKS: tuple[Task, ...] = ("causal-lm", "image-text-to-text")
"""Tasks whose labels are their own text."""

LANGUAGE_TASKS: tuple[Task, ...] = (*NEXT_TOKEN_TASKS, "masked-lm", "seq2seq")

IGNORED = -100
"""The label that every loss of transformers leaves out."""


def forward_of(family: Family, task: Task) -> Forward:
    """How a family is called on a batch; gives logits, or hidden states for the task `features`.

    A module of the user's own is called with the tensors of the batch, in their order.
    """
    if family == "module":
        return lambda module, batch: _tensor(module(*batch.values()))
    run = _FORWARDS.get(task, _logits) if family == "transformers" else _images
    return lambda module, batch: run(module, fitted(module, batch))


def _images(module: nn.Module, batch: Batch) -> Tensor:
    return _tensor(module(batch["pixel_values"]))


def declared_head(task: Task, config: Config, outputs: int | None) -> Head | None:
    """What the config of a checkpoint says of its head; None if it leaves that to the labels.

    One output is a number, as in transformers: among one class there is nothing to choose.
    """
    if task not in _WITH_PROBLEM:
        return "classes"
    declared = _PROBLEMS.get(str(config.get("problem_type")))
    return "numbers" if outputs == 1 and declared != "flags" else declared


def _logits(module: nn.Module, batch: Batch) -> Tensor:
    return _tensor(module(**{k: v for k, v in batch.items() if k != "labels"}).logits)


def _seq2seq(module: nn.Module, batch: Batch) -> Tensor:
    # The labels become the decoder's inputs: transformers shifts them itself.
    return _tensor(module(**batch).logits)


def _features(module: nn.Module, batch: Batch) -> Tensor:
    output = module(**{k: v for k, v in batch.items() if k != "labels"})
    return _tensor(output[0])


def _image_text_scores(module: nn.Module, batch: Batch) -> Tensor:
    """How well each image of the batch goes with each text, then each text with each image.

    Gives [2 N, N] for N pairs.
    """
    output = module(**{k: v for k, v in batch.items() if k != "labels"})
    return torch.cat((_tensor(output.logits_per_image), _tensor(output.logits_per_text)))


_FORWARDS: Mapping[Task, Forward] = {
    "features": _features,
    "seq2seq": _seq2seq,
    "zero-shot-image-classification": _image_text_scores,
}


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"the model gave {type(value).__name__} where a tensor was expected")
    return value


def rows(task: Task, logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Predictions as rows [M, classes] with their labels [M], without the ignored positions.

    A causal model predicts the next token, so its logits are shifted against the labels. Without
    labels, all rows are returned.
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
