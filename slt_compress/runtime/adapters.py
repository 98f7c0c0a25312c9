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
        # the buffer that was there, and its values
        self._buffers: Mapping[str, tuple[Tensor, Tensor]] = MappingProxyType({})
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
        except BaseException:
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
            for name, (buffer, values) in self._buffers.items():
                _put_back(self._module, name, buffer, values)
        self._weights, self._buffers = MappingProxyType({}), MappingProxyType({})
        self._applied = None
        return self

    def _put_on(self, mask: MaskOfOrigin) -> None:
        for name in (*mask.shapes, *mask.tuned):
            _check_place(self._module, name)
        weights = site_parameters(self._module, mask.shapes)
        tuned = site_parameters(self._module, {n: tuple(t.shape) for n, t in mask.tuned.items()})
        frozen = {name: weight.detach() for name, weight in weights.items()}
        _check_memory(self._module, {**weights, **tuned})
        if sha256_tensors(frozen) != mask.provenance.weights_hash:
            raise TicketError(f"{mask.recorded.path} is not a ticket of the weights of this module")
        masks, own = mask.masks(), dict(self._module.named_buffers())
        if set(mask.buffers) - own.keys():
            raise TicketError(f"{mask.recorded.path} has buffers that this module lacks")
        changed = {**frozen, **{name: parameter.detach() for name, parameter in tuned.items()}}
        self._weights = {name: weight.clone() for name, weight in changed.items()}
        self._buffers = {name: (own[name], own[name].clone()) for name in mask.buffers}
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    gain, flip = mask.provenance.factors.get(name, 1.0), masks.flips.get(name)
                    weight.copy_(masked_weight(weight, masks[name], gain, flip))
                for name, parameter in tuned.items():
                    parameter.copy_(mask.tuned[name])
            set_buffers(self._module, mask.buffers)
        except BaseException:
            self.remove()
            raise
        self._applied = mask.recorded.path


def _mask_in(ticket: Ticket | str | Path) -> MaskOfOrigin:
    holder = ticket if isinstance(ticket, Ticket) else describe_folder(ticket)
    if isinstance(holder, Ticket):
        return mask_of(holder)
    if holder.format != MASK_FORMAT:
        raise SltError(f"{ticket} holds weights; only a ticket or a mask can be put on a model")
    return mask_of(read_mask_artifact(holder))


def _check_place(module: nn.Module, name: str) -> None:
    """Refuse a computed weight, without computing it: spectral norm changes as it is read."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return  # `site_parameters` says so
    if parametrize.is_parametrized(owner, leaf):
        raise TicketError(
            f"{name} is computed by a parametrization, so that no mask can be taken off "
            "it again; use slt_compress.load"
        )


def _check_memory(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse a weight in whose memory another one lies too: a mask in place would be on both."""
    end, last = 0, ""
    places = sorted((*_extent(tensor), name) for name, tensor in module.named_parameters())
    for start, stop, name in places:
        if start < end and (name in weights or last in weights):
            raise TicketError(
                f"{name} and {last} share memory, so that a mask cannot be put on one of them in "
                "place; use slt_compress.load"
            )
        if stop > end:
            end, last = stop, name
    for name, weight in weights.items():
        if torch._debug_has_internal_overlap(weight) == 1:
            raise TicketError(
                f"{name} is expanded, so that its elements cannot be masked in place; use "
                "slt_compress.load"
            )


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First byte, and the byte behind the last one, of a tensor; empty where it has no memory."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.numel() == 0:
        return (0, 0)
    lasts = ((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return (start, start + (1 + sum(lasts)) * tensor.element_size())


def _put_back(module: nn.Module, name: str, buffer: Tensor, values: Tensor) -> None:
    """A buffer with its values; what the module replaced in the meantime is replaced again."""
    path, _, leaf = name.rpartition(".")
    buffers = module.get_submodule(path)._buffers
    now = buffers.get(leaf)
    if now is None or now.shape != values.shape:
        buffers[leaf] = now = buffer
    now.copy_(values)
