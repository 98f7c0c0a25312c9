"""Training: one step of a search, as a function from state and batch to the next state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slt_compress.anatomy.gradient_paths import needs_train_mode
from slt_compress.checkpoints.tasks import to_device
from slt_compress.errors import SltError
from slt_compress.gates import Learned, Phase
from slt_compress.gates.gating import Gates, is_extra
from slt_compress.searching.accelerators import (
    in_main,
    mean_over_processes,
    prepared,
    shard_of,
)
from slt_compress.searching.objectives import Answer, Objective, Outcome
from slt_compress.searching.reading import reading_of, recomputing
from slt_compress.searching.schedules import density_at
from slt_compress.searching.selection import mean_decay
from slt_compress.searching.settings import (
    BatchNormPolicy,
    Training,
    lr_factor,
    phase_at,
)
from slt_compress.searching.state import (
    Drawn,
    EpochBatches,
    SearchState,
    Step,
    draw,
    first_state,
    follow_,
)
from slt_compress.searching.stepping import EarlySteps, early_steps, in_parts, optimizer_of
from slt_compress.searching.tuning import NO_TUNING, Tuning
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import SitePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Everything that stays the same from step to step.

    The objective is given `module`, or what is `called` instead of it, as accelerate wraps it.
    """

    module: nn.Module
    plan: SitePlan
    gates: Gates
    method: Learned
    budget: Budget
    objective: Objective
    batches: EpochBatches
    start_density: float
    training: Training
    called: nn.Module | None = None
    tuning: Tuning = NO_TUNING

    @property
    def total(self) -> int:
        """Optimiser steps of the whole search."""
        return self.training.total_steps(len(self.batches))

    def first_state(self) -> SearchState:
        """The state before the first step, made of the scores in the gates."""
        training = self.training
        averaged = training.ema > 0.0 and training.state == "fp32"  # else the optimizer has it
        return first_state(self.gates.trained, averaged=averaged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What computes the steps of a loop: module and optimizer as accelerate prepared them."""

    loop: Loop
    module: nn.Module
    optimizer: Any
    accelerator: Accelerator
    early: EarlySteps | None
    reading: Callable[[], AbstractContextManager[Any]]
    started: float

    def step(self, state: SearchState, drawn: Drawn) -> SearchState:
        """Take one step from `state`, whose tensors are taken over; the gates keep its sample.

        Raises:
            SltError: the loss is not finite.
        """
        loop, training, index = self.loop, self.loop.training, state.steps
        self._adopt(state)
        progress = self._progress(index)
        phase = phase_at(training, progress, index)
        density = density_at(
            progress, training.schedule,
            start=loop.start_density, target=loop.budget.density, ramp=training.ramp,
        )  # fmt: skip
        shifts = loop.method.shifts(loop.gates.ranked_(), loop.budget, density, phase, state.shifts)
        loop.gates.sample(phase, shifts)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor(training, progress)
            group["mean_decay"] = mean_decay(training.ema, index)
        outcome = self._learn(drawn.batch, phase)
        loss = mean_over_processes(self.accelerator, float(outcome.loss.detach()))
        if not isfinite(loss):
            raise SltError(
                f"the loss is {loss} at step {index + 1}: lower --lr or use precision no"
            )
        follow_(state.mean, state.scores, mean_decay(training.ema, index))
        seconds = self._seconds()
        over = training.max_time is not None and seconds >= training.max_time
        return replace(
            state,
            optimizer=self._kept(),
            scaler=self._scaler(),
            shifts=shifts,
            position=drawn.after,
            last=Step(
                index=index, total=index + 1 if over else loop.total, loss=loss, density=density,
                target=loop.budget.density, soft_metric=self._metric(outcome), progress=progress,
                seconds=seconds, hard=phase.hard,
            ),
        )  # fmt: skip

    def _learn(self, batch: Any, phase: Phase) -> Outcome:
        """Forward, backward and one update of the scores."""
        loop, training, accelerator = self.loop, self.loop.training, self.accelerator
        shard, weight = shard_of(batch, accelerator.process_index, accelerator.num_processes)
        parts = list(in_parts(shard, training.accumulate, shard_of))
        outcomes = []
        for number, (part, share) in enumerate(parts, start=1):
            early = self.early if number == len(parts) else None
            outcome = self._pulled(part, phase, weight * share, early)
            outcomes.append(outcome)
        if training.clip is not None:
            accelerator.clip_grad_norm_(list(loop.gates.trained.values()), training.clip)
        if self.early is not None:
            self.early.late()
        else:
            # accelerate's own step looks for a package on disk, and does no more without a scaler
            optimizer = self.optimizer if accelerator.scaler else self.optimizer.optimizer
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return outcomes[0] if len(outcomes) == 1 else _together(outcomes)

    def _pulled(self, batch: Any, phase: Phase, weight: float, early: EarlySteps | None) -> Outcome:
        """Forward and backward of a batch, or a part of one that has this weight in its mean."""
        loop, accelerator = self.loop, self.accelerator
        batch = to_device(batch, accelerator.device)
        target = _target(loop, batch, accelerator)
        _search_mode(loop.module, loop.training.batchnorm)
        with self.reading(), accelerator.autocast():
            outcome = loop.objective.loss(self.module, batch, target)
            if weight != 1.0:
                outcome = replace(outcome, loss=outcome.loss * weight)
            penalty = loop.method.penalty_of(loop.gates.scores, phase)
            loss = outcome.loss if penalty is None else outcome.loss + penalty * weight
            with nullcontext() if early is None else early.taken():
                if accelerator.scaler is None and accelerator.num_processes == 1:
                    torch.autograd.backward(
                        loss
                    )  # accelerate would look for a package on disk first
                else:
                    accelerator.backward(loss)
        return replace(outcome, loss=outcome.loss.detach())

    @torch.no_grad()
    def _adopt(self, state: SearchState) -> None:
        """Put a state that is not the one of the last step into gates and optimizer."""
        kept = self._kept()
        for name, score in self.loop.gates.trained.items():
            if score.data_ptr() != state.scores[name].data_ptr():
                score.data = state.scores[name]
            if kept.get(name) is not state.optimizer.get(name):
                self.optimizer.state[score] = dict(state.optimizer.get(name, {}))
        if state.scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(dict(state.scaler))

    def _kept(self) -> dict[str, Mapping[str, Tensor]]:
        """What the optimizer keeps for each score."""
        every = self.optimizer.state
        return {name: every[s] for name, s in self.loop.gates.trained.items() if every.get(s)}

    def _scaler(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {} if scaler is None else dict(scaler.state_dict())

    def _progress(self, index: int) -> float:
        """Share of the schedule that is over: of the steps, or of the time if that is shorter."""
        by_steps, max_time = index / self.loop.total, self.loop.training.max_time
        if max_time is None:
            return by_steps
        return max(by_steps, min(1.0, self._seconds() / max_time))

    def _seconds(self) -> float:
        """Seconds since the search began; where the time may end it, those of the main process."""
        seconds = time.monotonic() - self.started
        if self.loop.training.max_time is None:
            return seconds
        return in_main(self.accelerator, lambda: seconds)

    def _metric(self, outcome: Outcome) -> float | None:
        if outcome.metric is None:
            return None
        return mean_over_processes(self.accelerator, outcome.metric)


@contextmanager
def engine_for(loop: Loop, accelerator: Accelerator, *, seconds: float = 0.0) -> Iterator[Engine]:
    """What computes the steps of a loop of which `seconds` are over already."""
    training, trained = loop.training, loop.gates.trained
    rates = {name: loop.tuning.rate(name) for name in trained if is_extra(name)}
    optimizer = optimizer_of(trained, rates, training)
    with (
        recomputing(loop.module, training),
        prepared(accelerator, loop.called or loop.module, optimizer) as (module, wrapped),
    ):
        yield Engine(
            loop=loop, module=module, optimizer=wrapped, accelerator=accelerator,
            early=early_steps(trained.values(), wrapped, accelerator, training),
            reading=reading_of(loop.module, loop.plan, training, accelerator.num_processes),
            started=time.monotonic() - seconds,
        )  # fmt: skip


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a batch from those of its parts, whose losses are shares of its own."""
    metrics = [outcome.metric for outcome in outcomes if outcome.metric is not None]
    return Outcome(
        torch.stack([outcome.loss for outcome in outcomes]).sum(),
        sum(metrics) / len(metrics) if len(metrics) == len(outcomes) else None,
    )


def walk(engine: Engine, state: SearchState | None = None) -> Iterator[SearchState]:
    """The states after each step, from `state` or the first one to the end of the search."""
    state = engine.loop.first_state() if state is None else state
    for drawn in draw(engine.loop.batches, state.position):
        state = engine.step(state, drawn)
        yield state
        if state.over:
            return


def _target(loop: Loop, batch: Any, accelerator: Accelerator) -> Answer | None:
    """What the objective wants of the dense network: gates open, eval mode, no gradients.

    Outside `read_once`, whose cache would give the gated weights.
    """
    if loop.objective.target is None:
        return None
    loop.module.eval()
    with torch.no_grad(), loop.gates.opened(), accelerator.autocast():
        return loop.objective.target(loop.module, batch)


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
        elif needs_train_mode(child):
            child.training = True
