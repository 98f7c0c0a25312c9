"""Training of the kept weights alone: what a ticket dropped stays 0, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from slt_compress.anatomy.wrapped_names import plain_name
from slt_compress.errors import TicketError
from slt_compress.masks import Masks
from slt_compress.tickets import Ticket, read_ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldZeros:
    """The hooks that hold the zeros of a model.

    Attributes:
        masks: which weights are kept, by the names of the ticket.
        handles: what `remove` takes away.
    """

    masks: Masks
    handles: tuple[Any, ...]

    def put_on_(self, module: nn.Module) -> None:
        """Set the dropped weights of another copy to 0: an average of weights, or a merged model.

        An average that was built after `hold_zeros` needs this never; one that was built before,
        once; a model into which adapters were merged, after every merge.

        Raises:
            TicketError: the module lacks a site, or has it in another shape.
        """
        for parameter, mask in _parameters(module, self.masks).values():
            _clear_(parameter, ~mask.to(parameter.device))

    def remove(self) -> None:
        """Let the weights go."""
        for handle in self.handles:
            handle.remove()


def hold_zeros(model: nn.Module, ticket: str | Path | Ticket, optimizer: Optimizer) -> HeldZeros:
    """Keep what a ticket dropped at exactly 0 while `optimizer` trains the model.

    At once, and after every step of the optimizer, dropped weights are 0, and so are their places
    in every floating-point state of the optimizer that has the shape of the weight (moments,
    momentum). Gradients are 0 there when they are computed, so that norms that gradients are
    clipped by count the kept weights alone. Nothing is asked of the optimizer but the step hooks
    that `torch.optim.Optimizer` has. With the Trainer of transformers, hand over the optimizer as
    `optimizers=(optimizer, None)`; with accelerate, call this before `prepare`.

    Costs one byte for each weight of a site, on the device of the weight.

    Args:
        model: the masked model, or any model of its architecture; wrappers are looked through.
        ticket: the folder of a ticket, or the ticket.
        optimizer: what trains the model; call this once for each, where there are several.

    Raises:
        TicketError: the ticket cannot be read, or a site is missing or has another shape, as in a
            model whose weights are sharded.
    """
    read = ticket if isinstance(ticket, Ticket) else read_ticket(ticket)
    found = _parameters(model, read.masks)
    dropped = {p: ~mask.to(p.device) for p, mask in found.values()}

    def clear_(*_: object) -> None:
        for parameter, places in dropped.items():
            _clear_(parameter, places)
            for state in optimizer.state.get(parameter, {}).values():
                if _is_moment(state, parameter):
                    _clear_(state, places)

    clear_()
    hooks: list[Any] = []
    for parameter, places in dropped.items():
        if parameter.requires_grad:
            register: Any = parameter.register_hook
            hooks.append(register(_cleared(places)))
    step = optimizer.register_step_post_hook(clear_)
    return HeldZeros(masks=read.masks, handles=(*hooks, step))


def _parameters(model: nn.Module, masks: Masks) -> Mapping[str, tuple[nn.Parameter, Tensor]]:
    """The parameter of every site, with its mask."""
    own = dict(model.named_parameters(remove_duplicate=False))
    plain = {plain_name(name): parameter for name, parameter in own.items()}
    found = {}
    for name, mask in masks.items():
        parameter = own.get(name, plain.get(plain_name(name)))
        if parameter is None:
            raise TicketError(f"the model has no parameter {name}, which is a site of the ticket")
        if parameter.shape != mask.shape:
            raise TicketError(
                f"{name} is {tuple(parameter.shape)} in the model and {tuple(mask.shape)} in the "
                "ticket; hold zeros before the model is sharded, quantised or cut"
            )
        found[name] = (parameter, mask)
    return found


def _clear_(tensor: Tensor, places: Tensor) -> None:
    with torch.no_grad():
        tensor.masked_fill_(places.to(tensor.device), 0)


def _cleared(places: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.masked_fill(places, 0)


def _is_moment(state: object, parameter: Tensor) -> bool:
    """Whether a state has a number for each weight; in eight bits, 0 is another number."""
    return (
        isinstance(state, Tensor)
        and state.shape == parameter.shape
        and state.dim() > 0
        and state.is_floating_point()
    )
