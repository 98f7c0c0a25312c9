"""Objectives: what a search minimises, as functions of (model, batch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slt_compress.checkpoints import Family, Task
from slt_compress.errors import RecipeError
from slt_compress.hidden import Hidden, caught

Batch = Mapping[str, Tensor]
Forward = Callable[[nn.Module, Batch], Tensor]
ObjectiveName = Literal["auto", "task", "distill", "lm"]
# Their own text is their labels.
NEXT_TOKEN_TASKS: tuple[Task, ...] = ("causal-lm", "image-text-to-text")
LANGUAGE_TASKS: tuple[Task, ...] = (*NEXT_TOKEN_TASKS, "masked-lm", "seq2seq")
IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOptions:
    """The `objective` section.

    Attributes:
        name: `auto` is the task for a random init and distillation for a pretrained checkpoint;
            `lm` is the task of a language model, and refuses any other model.
        temperature: of the distillation.
        hidden_weight: factor of the error of the hidden states in a distillation.
        label_weight: share of the labels' loss in a distillation, where the labels match.
        label_smoothing: of the task's loss.
    """

    name: ObjectiveName = "auto"
    temperature: float = 2.0
    hidden_weight: float = 0.0
    label_weight: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RecipeError(f"objective.temperature must be above 0, not {self.temperature}")
        if not self.hidden_weight >= 0:
            raise RecipeError(
                f"objective.hidden_weight must not be negative, not {self.hidden_weight}"
            )
        for name in ("label_weight", "label_smoothing"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise RecipeError(
                    f"objective.{name} is a share in [0, 1], not {getattr(self, name)}"
                )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one batch gives: the loss to minimise and, where it has one, a metric to watch."""

    loss: Tensor
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the dense network says about a batch: its output, and its hidden states by block."""

    output: Tensor
    hidden: Hidden


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss of the gated network, and what it wants to know of the dense one first.

    `target`, where given, is computed without gradients on the same network with its gates open.
    """

    loss: Callable[[nn.Module, Batch, Answer | None], Outcome]
    target: Callable[[nn.Module, Batch], Answer] | None = None


def forward_of(family: Family, task: Task) -> Forward:
    """How a family is called on a batch; gives logits, or hidden states for task `features`.

    A module of the user's own takes the tensors of the batch in their order.
    """
    if family == "transformers":
        return _FORWARDS.get(task, _logits)
    if family == "module":
        return lambda module, batch: _tensor(module(*batch.values()))
    return lambda module, batch: _tensor(module(batch["pixel_values"]))


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


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a nested batch on a device, pictures with their channels last.

    Convolutions are faster so on a CPU (benchmarks/steps.py).
    """
    if isinstance(batch, Tensor):
        pictures = batch.dim() == 4
        return batch.to(
            device, memory_format=torch.channels_last if pictures else torch.preserve_format
        )
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


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


def label_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy (nats, mean over rows), or mean squared error where the labels are floats."""
    if labels.is_floating_point():
        return F.mse_loss(logits.float().reshape(labels.shape), labels.float())
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of rows of logits [M, classes], mean over rows, in nats.

    Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network", section 2. For a
    single output (regression) it is the mean squared difference.
    """
    if student.shape[-1] == 1:
        return F.mse_loss(student.float(), teacher.float())
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    loss = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return loss * temperature**2


def task_objective(forward: Forward, task: Task, *, label_smoothing: float = 0.0) -> Objective:
    """The task's own loss on the labels of the batch."""

    def loss(module: nn.Module, batch: Batch, target: Answer | None) -> Outcome:
        logits, labels = rows(task, forward(module, batch), batch["labels"])
        wanted = batch["labels"] if labels is None else labels
        return Outcome(label_loss(logits, wanted, label_smoothing), _watched(logits, wanted))

    return Objective(loss)


def distill_objective(
    forward: Forward,
    task: Task,
    *,
    temperature: float = 2.0,
    label_weight: float = 0.0,
    blocks: tuple[str, ...] = (),
    hidden_weight: float = 0.0,
) -> Objective:
    """Divergence from the same network with its gates open, mixed with the labels.

    The loss is (1 - label_weight) * divergence + label_weight * label loss, plus hidden_weight
    times the mean over `blocks` of the relative error of their outputs; for task `features`
    the divergence is that error of the last hidden states.
    """
    watched = blocks if hidden_weight > 0.0 else ()

    def answer(module: nn.Module, batch: Batch) -> Answer:
        with caught(module, watched) as hidden:
            return Answer(forward(module, batch), hidden)

    def loss(module: nn.Module, batch: Batch, target: Answer | None) -> Outcome:
        found = answer(module, batch)
        dense = Answer(found.output.detach(), {}) if target is None else target
        outcome = _distilled(task, batch, found.output, dense.output, temperature, label_weight)
        errors = [
            relative_error(state, dense.hidden[name]) for name, state in found.hidden.items()
            if name in dense.hidden
        ]  # fmt: skip
        if not errors:
            return outcome
        return replace(outcome, loss=outcome.loss + hidden_weight * torch.stack(errors).mean())

    return Objective(loss, target=answer)


def _distilled(
    task: Task, batch: Batch, output: Tensor, dense: Tensor, temperature: float, label_weight: float
) -> Outcome:
    """The loss of the outputs alone."""
    if task == "features":
        return Outcome(relative_error(output, dense))
    labels = batch.get("labels")
    student, known = rows(task, output, labels)
    teacher, _ = rows(task, dense, labels)
    value = divergence(student, teacher, temperature)
    if known is None:
        return Outcome(value, _watched(student, teacher.argmax(-1)))
    if label_weight > 0.0:
        value = (1.0 - label_weight) * value + label_weight * label_loss(student, known)
    return Outcome(value, _watched(student, known))


def own_objective(loss_fn: Callable[[nn.Module, Batch], Tensor]) -> Objective:
    """A loss of the user's own: `loss_fn(module, batch)` gives a scalar tensor."""
    return Objective(lambda module, batch, target: Outcome(loss_fn(module, batch)))


def relative_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over the mean square of the target."""
    target = target.float()
    return F.mse_loss(output.float(), target) / target.square().mean().clamp_min(1e-12)


def _watched(logits: Tensor, labels: Tensor) -> float | None:
    """Share of rows whose top class is the label; none for regression."""
    if labels.is_floating_point() or labels.numel() == 0:
        return None
    return float((logits.detach().argmax(-1) == labels).float().mean())
