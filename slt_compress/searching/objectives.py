"""Objectives: what a search minimises, as functions of (model, batch)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from slt_compress.anatomy.blocks import BlockOutputs, capture_outputs
from slt_compress.checkpoints import Task
from slt_compress.checkpoints.tasks import Batch, Forward, Head, rows
from slt_compress.errors import RecipeError
from slt_compress.evidence.head_losses import head_divergence, head_loss, head_score
from slt_compress.evidence.losses import relative_error

ObjectiveName = Literal["auto", "task", "distill", "lm", "reconstruct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOptions:
    """The `objective` section.

    Attributes:
        name: `auto` is the task for a random init and distillation for a pretrained checkpoint;
            `lm` is the task of a language model, and refuses any other model; `reconstruct` goes
            block by block, each block's output against that of the dense network.
        temperature: of the distillation.
        hidden_weight: factor of the error of the hidden states in a distillation.
        label_weight: share of the labels' loss in a distillation, if the labels match.
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


def objective_name(options: ObjectiveOptions, *, random_init: bool) -> ObjectiveName:
    """The objective that `auto` stands for, or the one that is named."""
    if options.name != "auto":
        return options.name
    return "task" if random_init else "distill"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one batch: the loss to minimise and, if there is one, a metric to watch."""

    loss: Tensor
    metric: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The dense network's output on a batch, and its hidden states by block."""

    output: Tensor
    hidden: BlockOutputs


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss of the gated network, and the target it may need from the dense one first.

    `target` is computed without gradients on the same network with its gates open.
    """

    loss: Callable[[nn.Module, Batch, Answer | None], Outcome]
    target: Callable[[nn.Module, Batch], Answer] | None = None


def task_objective(
    forward: Forward, task: Task, *, label_smoothing: float = 0.0, head: Head = "classes"
) -> Objective:
    """The task's own loss on the labels of the batch."""

    def loss(module: nn.Module, batch: Batch, target: Answer | None) -> Outcome:
        logits, labels = rows(task, forward(module, batch), batch["labels"])
        wanted = batch["labels"] if labels is None else labels
        value = head_loss(head, logits, wanted, label_smoothing)
        return Outcome(value, head_score(head, logits, wanted))

    return Objective(loss)


def distill_objective(
    forward: Forward,
    task: Task,
    *,
    temperature: float = 2.0,
    label_weight: float = 0.0,
    blocks: tuple[str, ...] = (),
    hidden_weight: float = 0.0,
    head: Head = "classes",
) -> Objective:
    """Divergence from the same network with its gates open, mixed with the labels.

    The loss is (1 - label_weight) * divergence + label_weight * label loss, plus hidden_weight
    times the mean over `blocks` of the relative error of their outputs; for task `features`
    the divergence is that error of the last hidden states.
    """
    watched = blocks if hidden_weight > 0.0 else ()

    def answer(module: nn.Module, batch: Batch) -> Answer:
        with capture_outputs(module, watched) as hidden:
            return Answer(forward(module, batch), hidden)

    def loss(module: nn.Module, batch: Batch, target: Answer | None) -> Outcome:
        student = answer(module, batch)
        dense = Answer(student.output.detach(), {}) if target is None else target
        outcome = _distilled(
            task, batch, student.output, dense.output, temperature, label_weight, head
        )
        errors = [
            relative_error(state, dense.hidden[name]) for name, state in student.hidden.items()
            if name in dense.hidden
        ]  # fmt: skip
        if not errors:
            return outcome
        return replace(outcome, loss=outcome.loss + hidden_weight * torch.stack(errors).mean())

    return Objective(loss, target=answer)


def _distilled(
    task: Task,
    batch: Batch,
    output: Tensor,
    dense: Tensor,
    temperature: float,
    label_weight: float,
    head: Head,
) -> Outcome:
    """The loss of the outputs alone."""
    if task == "features":
        return Outcome(relative_error(output, dense))
    labels = batch.get("labels")
    student, known = rows(task, output, labels)
    teacher, _ = rows(task, dense, labels)
    value = head_divergence(head, student, teacher, temperature)
    if known is None:
        wanted = teacher.sigmoid() if head == "flags" else teacher.argmax(-1)
        return Outcome(value, head_score(head, student, wanted))
    if label_weight > 0.0:
        value = (1.0 - label_weight) * value + label_weight * head_loss(head, student, known)
    return Outcome(value, head_score(head, student, known))


def own_objective(loss_fn: Callable[[nn.Module, Batch], Tensor]) -> Objective:
    """The user's own loss: `loss_fn(module, batch)` returns a scalar tensor."""
    return Objective(lambda module, batch, target: Outcome(loss_fn(module, batch)))
