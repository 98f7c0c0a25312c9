"""Adam and SGD that keep what they remember of each score in bf16, in half the memory.

The arithmetic of a step is fp32, on pieces of a tensor. The second moment is rounded at random:
its changes are smaller than a step of bf16, and rounding to nearest would lose every one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

# Elements of a piece: what is made of it in fp32 stays in the cache.
_PIECE = 1 << 16
_BETAS, _EPS, _MOMENTUM = (0.9, 0.999), 1e-8, 0.9
# Steps through the table of random bits, from step to step and from piece to piece: primes.
_STRIDES = (7919, 15485863)

Moments = Mapping[str, Tensor]


class _Half(torch.optim.Optimizer):
    """What both optimizers share.

    The state of a score has, beside the moments, `step` and, if `averaged`, `lag`: by how much the
    score is ahead of its running mean. The decay of that mean is `mean_decay` of the group.
    """

    moments: tuple[str, ...]

    def __init__(
        self,
        scores: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        averaged: bool,
    ) -> None:
        super().__init__(scores, {"lr": lr, "weight_decay": weight_decay, "mean_decay": 0.0})
        self._kept = (*self.moments, *(["lag"] if averaged else []))
        bits = torch.Generator().manual_seed(0)
        self._bits = torch.randint(1 << 16, (2 * _PIECE,), dtype=torch.int32, generator=bits)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Change every score that has a gradient."""
        for group in self.param_groups:
            for score in group["params"]:
                if score.grad is not None:
                    self._step(score, score.grad, group)

    def _step(self, score: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state: dict[str, Tensor] = self.state[score]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in self._kept:
                state[name] = torch.zeros_like(score, dtype=torch.bfloat16)
        state["step"] += 1
        steps, flat = int(state["step"]), score.detach().view(-1)
        halves = {name: state[name].view(-1) for name in self._kept}
        gradients = gradient.reshape(-1)
        for start in range(0, flat.numel(), _PIECE):
            piece = slice(start, start + _PIECE)
            values, slope = flat[piece], gradients[piece].float()
            if group["weight_decay"]:
                slope = slope.add(values, alpha=group["weight_decay"])
            kept = {name: half[piece] for name, half in halves.items()}
            at = (steps * _STRIDES[0] + start // _PIECE * _STRIDES[1]) % _PIECE
            change = self._change(slope, kept, steps, group["lr"], at)
            values.add_(change)
            if "lag" in kept:
                kept["lag"].copy_(change.add_(kept["lag"]).mul_(group["mean_decay"]))

    def _change(self, slope: Tensor, kept: Moments, steps: int, lr: float, at: int) -> Tensor:
        """The change of some scores; `kept` is renewed, with the random bits from `at` on."""
        raise NotImplementedError

    def _rounded_(self, values: Tensor, at: int) -> Tensor:
        """The values rounded to bf16, up as likely as they are near; they are overwritten."""
        bits = self._bits[at : at + values.numel()].to(values.device)
        words = values.view(torch.int32).add_(bits)
        return words.bitwise_and_(-(1 << 16)).view(torch.float32)


class HalfAdam(_Half):
    """Adam (Kingma & Ba 2015) with both moments in bf16."""

    moments = ("exp_avg", "exp_avg_sq")

    def _change(self, slope: Tensor, kept: Moments, steps: int, lr: float, at: int) -> Tensor:
        first, second = (kept[name].float() for name in self.moments)
        first.lerp_(slope, 1.0 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(slope, slope, value=1.0 - _BETAS[1])
        kept["exp_avg"].copy_(first)
        spread = second.sqrt().div_(sqrt(1.0 - _BETAS[1] ** steps)).add_(_EPS)
        kept["exp_avg_sq"].copy_(self._rounded_(second, at))
        return first.div_(spread).mul_(-lr / (1.0 - _BETAS[0] ** steps))


class HalfSGD(_Half):
    """SGD with Nesterov momentum, which is in bf16."""

    moments = ("momentum_buffer",)

    def _change(self, slope: Tensor, kept: Moments, steps: int, lr: float, at: int) -> Tensor:
        momentum = kept["momentum_buffer"].float().mul_(_MOMENTUM).add_(slope)
        kept["momentum_buffer"].copy_(momentum)
        return momentum.mul_(_MOMENTUM).add_(slope).mul_(-lr)


def lags_of(optimizer: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """By how much each score is ahead of its running mean (bf16), of those that this is kept of."""
    return ((name, kept["lag"]) for name, kept in optimizer.items() if "lag" in kept)
