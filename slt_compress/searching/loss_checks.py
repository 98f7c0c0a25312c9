"""A loss of the user's own: what it returns, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.errors import SltError
from slt_compress.storage.files import sha256_tensors

LossFn = Callable[[nn.Module, Any], Tensor]
_WANTED = "it has to return one real number as a tensor, computed from the module's outputs"


class GuardedLoss:
    """`loss_fn` with a sentence for whatever is no loss, and for changes of the module's weights.

    Weights are compared by their hash: with the second call in a step, so after the first step,
    and whenever `check_weights` is asked for, as after every measurement.
    """

    def __init__(self, loss_fn: LossFn, module: nn.Module) -> None:
        if not callable(loss_fn):
            raise SltError(
                f"loss_fn is {_told(loss_fn)} and no function: it is called as "
                "loss_fn(module, batch), and has to return the loss"
            )
        self._loss_fn, self._module = loss_fn, module
        # the parameters themselves: gates give them other names and leave them what they are
        self._weights = dict(module.named_parameters())
        self._hash = sha256_tensors(self._weights)
        self._steps = 0

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """The loss as a scalar; gradients are asked for where they are enabled.

        Raises:
            SltError: `loss_fn` returned something else, or changed a weight.
        """
        if torch.is_grad_enabled():
            if self._steps == 1:
                self.check_weights()
            self._steps += 1
        loss = checked_loss(self._loss_fn(module, batch))
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise SltError(
                "loss_fn returned a tensor without a gradient: it must not call .item(), .detach() "
                "or torch.no_grad(), and has to use the outputs of the module that it is given"
            )
        return loss

    def check_weights(self) -> None:
        """Compare the module's weights with those at the start.

        Raises:
            SltError: they are others.
        """
        there = {id(parameter) for parameter in self._module.parameters()}
        whole = all(id(parameter) in there for parameter in self._weights.values())
        if not whole or sha256_tensors(self._weights) != self._hash:
            raise SltError(
                "loss_fn changes the weights of the module; a search keeps them frozen, so let "
                "loss_fn only compute a loss (no optimizer step, no in-place change, "
                "no other layer in the place of one)"
            )


def checked_loss(value: object) -> Tensor:
    """What `loss_fn` returned, as a scalar.

    Raises:
        SltError: it is no tensor, not one number, or not a real one.
    """
    if not isinstance(value, Tensor):
        raise SltError(f"loss_fn returned {_told(value)}; {_WANTED}")
    if value.numel() != 1:
        raise SltError(
            f"loss_fn returned a tensor of shape {tuple(value.shape)}; {_WANTED} (use .mean())"
        )
    if not value.is_floating_point():
        raise SltError(f"loss_fn returned a tensor of {value.dtype}; {_WANTED}")
    return value.reshape(())


def _told(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
