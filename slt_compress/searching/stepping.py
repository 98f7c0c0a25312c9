"""Stepping: how gradients become changes of the scores, with as little memory as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.searching.half_states import HalfAdam, HalfSGD
from slt_compress.searching.settings import Training, lr_of

# A search of fewer gates takes one step for all of them, as a step has a price of its own.
MANY = 1 << 20


def optimizer_of(
    trained: Mapping[str, nn.Parameter], rates: Mapping[str, float], training: Training
) -> torch.optim.Optimizer:
    """The optimizer of the scores, and of what is trained beside them at `rates` of its own.

    The latter do not decay. Each group keeps the rate at the start as `base_lr`.

    Raises:
        RecipeError: no learning rate is given.
    """
    decay, lr, sgd = training.weight_decay, lr_of(training), training.optimizer == "sgd"
    scores: list[dict[str, Any]] = [
        {"params": [p for name, p in trained.items() if name not in rates], "base_lr": lr},
        *(
            {"params": [trained[name]], "base_lr": rate, "weight_decay": 0.0}
            for name, rate in rates.items()
        ),
    ]
    if training.state == "bf16":
        half = HalfSGD if sgd else HalfAdam
        return half(scores, lr=lr, weight_decay=decay, averaged=training.ema > 0.0)
    if sgd:
        return torch.optim.SGD(
            scores, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay, fused=True
        )
    return torch.optim.Adam(scores, lr=lr, weight_decay=decay, fused=True)


@dataclass(frozen=True, slots=True)
class EarlySteps:
    """Steps each score within the backward pass, as soon as its gradient is complete.

    A full set of gradients then never exists. The scores end as they do after one step for all.
    """

    scores: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take them in the backward pass inside this block."""
        with ExitStack() as stack:
            for score in self.scores:
                hooked: Any = score  # torch gives the method no types
                stack.callback(hooked.register_post_accumulate_grad_hook(self._step).remove)
            yield

    def late(self) -> None:
        """Take the steps of those whose gradient is left from parts of the batch before."""
        if any(score.grad is not None for score in self.scores):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _step(self, score: Tensor) -> None:
        (group,) = self.optimizer.param_groups
        every = group["params"]
        group["params"] = [score]
        try:
            self.optimizer.step()
        finally:
            group["params"] = every
        score.grad = None


def early_steps(
    scores: Iterable[nn.Parameter], optimizer: Any, accelerator: Any, training: Training
) -> EarlySteps | None:
    """The steps within the backward pass; None where a step needs all gradients at once.

    It does to clip them, to scale them back, to add them over processes, or to step some at another
    rate. A small search gains nothing.
    """
    listed = list(scores)
    together = (
        training.clip is not None
        or accelerator.scaler is not None
        or accelerator.num_processes > 1
        or len(optimizer.param_groups) > 1
        or sum(score.numel() for score in listed) < MANY
    )
    return None if together else EarlySteps(listed, getattr(optimizer, "optimizer", optimizer))


def in_parts(batch: Any, count: int, cut: Callable[..., Any]) -> Iterator[tuple[Any, float]]:
    """A batch cut into at most `count` parts, each with its share in the mean over the batch."""
    if count == 1:
        yield batch, 1.0
        return
    for index in range(count):
        part, weight = cut(batch, index, count)
        yield part, weight / count
