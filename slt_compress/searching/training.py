"""Training: the one loop that learns scores. The only module that knows accelerate."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slt_compress.anatomy.gradient_paths import refuses_eval
from slt_compress.checkpoints.tasks import to_device
from slt_compress.errors import RecipeError, SltError
from slt_compress.gates import Learned
from slt_compress.gates.gating import Gates, read_once
from slt_compress.searching.objectives import Answer, Objective
from slt_compress.searching.schedules import density_at
from slt_compress.searching.settings import BatchNormPolicy, Training, lr_factor, phase_at
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import SitePlan

# What accelerate sets on a module that it prepares: the caller's module keeps none of it.
_ACCELERATES_OWN = ("forward", "_original_forward", "_is_accelerate_prepared")


class EpochBatches(Protocol):
    """Batches that can be gone through again and again, each epoch in its own order."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def __iter__(self) -> Iterator[Any]:
        """The batches in a fixed order."""

    def epoch(self, index: int) -> Iterator[Any]:
        """The batches of one epoch, the same ones in the same order for the same index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is known after one optimiser step.

    `total` is `index` + 1 in the last step, also where the time was up before.
    `density` is the scheduled one, met by this step's gates; `soft_metric` is the share of
    rows of this batch that the sampled network gets right, where the task has such a thing.
    """

    index: int
    total: int
    loss: float
    density: float
    target: float
    soft_metric: float | None
    progress: float
    seconds: float
    hard: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Everything a training run needs beside its settings."""

    module: nn.Module
    plan: SitePlan
    gates: Gates
    method: Learned
    budget: Budget
    objective: Objective
    batches: EpochBatches
    start_density: float


def accelerator_of(training: Training) -> Accelerator:
    """The accelerator for a search.

    Raises:
        RecipeError: the precision or device is not to be had on this machine.
    """
    # accelerate keeps its state for the process; a second search may ask for another one
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        accelerator = Accelerator(mixed_precision=training.precision, cpu=training.device == "cpu")
        if training.device not in (None, "cpu"):
            torch.empty(0, device=training.device)
            wanted, found = torch.device(training.device), accelerator.device
            if wanted.type != found.type or (wanted.index or 0) != (found.index or 0):
                raise ValueError(f"accelerate chose {found} (CUDA_VISIBLE_DEVICES picks a GPU)")
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"training.device={training.device}, training.precision={training.precision}: {error}"
        ) from None
    return accelerator


def train(loop: Loop, training: Training, accelerator: Accelerator) -> Generator[Step]:
    """Train the scores; yields after every step, with the gates on that step's sample.

    Raises:
        SltError: the loss is not finite.
    """
    optimizer = _optimizer(list(loop.gates.scores.values()), training)
    own = dict(vars(loop.module))
    module, optimizer = accelerator.prepare(loop.module, optimizer)
    try:
        yield from _steps(loop, training, accelerator, module, optimizer)
    finally:
        for key in _ACCELERATES_OWN:
            vars(loop.module).pop(key, None)
            if key in own:
                vars(loop.module)[key] = own[key]


def _optimizer(scores: list[nn.Parameter], training: Training) -> torch.optim.Optimizer:
    decay, lr = training.weight_decay, _lr(training)
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            scores, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
        )
    return torch.optim.Adam(scores, lr=lr, weight_decay=decay, fused=True)


def _lr(training: Training) -> float:
    if training.lr is None:
        raise RecipeError("training.lr is not settled: see slt_compress.searching.settings.settled")
    return training.lr


def _steps(
    loop: Loop,
    training: Training,
    accelerator: Accelerator,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Iterator[Step]:
    total, lr = training.total_steps(len(loop.batches)), _lr(training)
    shifts = dict.fromkeys(loop.gates.by_name, 0.0)
    started = time.monotonic()
    batches = _endless(loop.batches)
    for index in range(total):
        progress = _progress(index, total, started, training.max_time)
        phase = phase_at(training, progress, index)
        density = density_at(
            progress, training.schedule,
            start=loop.start_density, target=loop.budget.density, ramp=training.ramp,
        )  # fmt: skip
        scores = loop.gates.ranked_()
        shifts = loop.method.shifts(scores, loop.budget, density, phase, shifts)
        loop.gates.sample(phase, shifts)
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_factor(training, progress)
        batch = _share(next(batches), accelerator)
        target = _target(loop, module, batch, accelerator)
        _search_mode(loop.module, training.batchnorm)
        with read_once(loop.module, loop.plan), accelerator.autocast():
            outcome = loop.objective.loss(module, batch, target)
            penalty = loop.method.penalty_of(loop.gates.scores, phase)
            accelerator.backward(outcome.loss if penalty is None else outcome.loss + penalty)
        if training.clip is not None:
            accelerator.clip_grad_norm_(list(loop.gates.scores.values()), training.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = float(outcome.loss.detach())
        if not isfinite(loss):
            raise SltError(
                f"the loss is {loss} at step {index + 1}: lower --lr or use precision no"
            )
        seconds = time.monotonic() - started
        over = training.max_time is not None and seconds >= training.max_time
        yield Step(
            index=index, total=index + 1 if over else total, loss=loss, density=density,
            target=loop.budget.density, soft_metric=outcome.metric, progress=progress,
            seconds=seconds, hard=phase.hard,
        )  # fmt: skip
        if over:
            return


def _progress(index: int, total: int, started: float, max_time: float | None) -> float:
    """Share of the schedule that is over: of the steps, or of the time where that is shorter."""
    by_steps = index / total
    if max_time is None:
        return by_steps
    return max(by_steps, min(1.0, (time.monotonic() - started) / max_time))


def _target(loop: Loop, module: nn.Module, batch: Any, accelerator: Accelerator) -> Answer | None:
    """What the objective wants of the dense network: gates open, eval mode, no gradients.

    Outside `read_once`, whose cache would give the gated weights.
    """
    if loop.objective.target is None:
        return None
    loop.module.eval()
    with torch.no_grad(), loop.gates.opened(), accelerator.autocast():
        return loop.objective.target(module, batch)


def _search_mode(module: nn.Module, batchnorm: BatchNormPolicy) -> None:
    """Eval mode (no dropout: the gates are noise enough), with BatchNorm as the policy says.

    Running statistics stay those of the dense network, which may be the teacher. Recurrent
    layers go to train mode, as cuDNN has no backward for them otherwise; so do Reformer's.
    """
    module.eval()
    for child in module.modules():
        if isinstance(child, _BatchNorm) and batchnorm == "batch":
            child.momentum = 0.0
            child.train()
        elif isinstance(child, nn.RNNBase) and child.dropout == 0:
            child.train()
        elif refuses_eval(child):
            child.training = True


def _endless(batches: EpochBatches) -> Iterator[Any]:
    for epoch in count():
        yield from batches.epoch(epoch)


def _share(batch: Any, accelerator: Accelerator) -> Any:
    """This process's share of a batch, on its device."""
    world, rank = accelerator.num_processes, accelerator.process_index
    if world > 1 and isinstance(batch, Mapping):
        batch = {key: value[rank::world] for key, value in batch.items()}
    return to_device(batch, accelerator.device)
