"""Base: several tickets on one loaded model, applied and removed like adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slt_compress.anatomy.states import set_buffers, site_parameters
from slt_compress.artifacts import MASK_FORMAT, read_mask_artifact
from slt_compress.errors import SltError, TicketError
from slt_compress.masks import masked_weight
from slt_compress.runtime.opening import MaskOfOrigin, describe_folder, mask_of
from slt_compress.storage.files import sha256_tensors
from slt_compress.tickets import Ticket


class Base:
    """A module on whose frozen weights masks are put in place; not a module itself.

    While a mask is on, it keeps the weights and buffers that the mask changed, and restores them
    bit for bit.

    Example::

        base = slt_compress.Base(model)
        base.apply("tickets/flowers")
        base.swap("tickets/birds")
        base.remove()
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._weights: Mapping[str, Tensor] = MappingProxyType({})
        self._buffers: Mapping[str, Tensor] = MappingProxyType({})
        self._applied: Path | None = None

    @property
    def module(self) -> nn.Module:
        """The module, masked by what is applied."""
        return self._module

    @property
    def applied(self) -> Path | None:
        """The folder of the ticket that is on; None for the module as it came."""
        return self._applied

    def apply(self, ticket: Ticket | str | Path) -> Base:
        """Put a ticket, or an artifact of the format `mask`, on the module.

        Raises:
            SltError: one is on already, or the ticket is of other weights; nothing is changed then.
        """
        if self._applied is not None:
            raise SltError(f"{self._applied} is on already; use swap, or remove it first")
        self._put_on(_mask_in(ticket))
        return self

    def swap(self, ticket: Ticket | str | Path) -> Base:
        """Take off what is on, if anything is, and put another ticket on.

        Raises:
            SltError: the other is of other weights; what was on stays on.
        """
        mask, before = _mask_in(ticket), self._applied
        self.remove()
        try:
            self._put_on(mask)
        except SltError:
            if before is not None:
                self._put_on(_mask_in(before))
            raise
        return self

    def remove(self) -> Base:
        """Take off what is on: weights and buffers are the module's own again, bit for bit."""
        parameters = dict(self._module.named_parameters())
        with torch.no_grad():
            for name, weight in self._weights.items():
                parameters[name].copy_(weight)
        set_buffers(self._module, self._buffers)
        self._weights = self._buffers = MappingProxyType({})
        self._applied = None
        return self

    def _put_on(self, mask: MaskOfOrigin) -> None:
        weights = site_parameters(self._module, mask.shapes)
        computed = [name for name in weights if _is_computed(self._module, name)]
        if computed:
            raise TicketError(
                f"{computed[0]} is computed by a parametrization, so a mask could not be taken off "
                "it again; use slt_compress.load"
            )
        frozen = {name: weight.detach() for name, weight in weights.items()}
        if sha256_tensors(frozen) != mask.provenance.weights_hash:
            raise TicketError(f"{mask.recorded.path} is not a ticket of the weights of this module")
        masks, own = mask.masks(), dict(self._module.named_buffers())
        if set(mask.buffers) - own.keys():
            raise TicketError(f"{mask.recorded.path} has buffers that this module lacks")
        self._weights = {name: weight.clone() for name, weight in frozen.items()}
        self._buffers = {name: own[name].clone() for name in mask.buffers}
        with torch.no_grad():
            for name, weight in weights.items():
                gain, flip = mask.provenance.gains.get(name, 1.0), masks.flips.get(name)
                weight.copy_(masked_weight(weight, masks[name].to(weight.device), gain, flip))
        set_buffers(self._module, mask.buffers)
        self._applied = mask.recorded.path


def _mask_in(ticket: Ticket | str | Path) -> MaskOfOrigin:
    holder = ticket if isinstance(ticket, Ticket) else describe_folder(ticket)
    if isinstance(holder, Ticket):
        return mask_of(holder)
    if holder.format != MASK_FORMAT:
        raise SltError(f"{ticket} holds weights; only a ticket or a mask can be put on a model")
    return mask_of(read_mask_artifact(holder))


def _is_computed(module: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    return parametrize.is_parametrized(module.get_submodule(path), leaf)
