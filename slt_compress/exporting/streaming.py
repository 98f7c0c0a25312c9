"""The masked model of a ticket, one tensor at a time: for models that do not fit into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slt_compress.artifacts import State, state_of, streams_dense
from slt_compress.checkpoints import Checkpoint, stream_origin
from slt_compress.checkpoints.downloaded import local_record
from slt_compress.errors import ArtifactError
from slt_compress.masks import masked_weight
from slt_compress.storage.files import sha256_tensors
from slt_compress.storage.lazy import LazyMapping
from slt_compress.tickets import Ticket
from slt_compress.tickets.provenance import provenance_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedModel:
    """A masked model whose module is on the meta device; its tensors are computed on demand."""

    checkpoint: Checkpoint
    state: State


def stream_ticket(
    ticket: Ticket,
    *,
    format: str,
    origin: str | Path | None = None,
    values_dtype: torch.dtype | None = None,
) -> StreamedModel | None:
    """The masked model of a ticket, of which no more than one tensor is in memory.

    None where the whole model is needed: its library does more than copy tensors from their files,
    or writes the dense layout itself.

    Raises:
        SltError: the ticket is damaged, or its origin cannot be opened.
    """
    family, kind = ticket.origin.get("family"), ticket.origin.get("kind")
    if kind == "module" or (format == "dense" and family != "transformers"):
        return None
    record = local_record(ticket.path, ticket.origin, origin)
    stream = stream_origin(record, ticket.stored, override=origin)
    if stream is None:
        return None
    module = stream.checkpoint.module
    sites = {name: site.shape for name, site in ticket.sites.items()}
    try:
        shells = state_of(module, sites)
    except ArtifactError:  # a site that the library computes, or no longer has
        return None
    if format == "dense" and (stream.renamed or not streams_dense(module, shells.ties)):
        return None
    weights = LazyMapping(sites, lambda name: stream.tensors[name])
    if sha256_tensors(weights) != provenance_of(ticket).weights_hash:
        return None  # the whole model shows what is wrong, or is not what was streamed here
    buffers = {name: ticket.buffers[name] for name in dict(module.named_buffers())
               if name in ticket.buffers}  # fmt: skip

    def make(name: str) -> Tensor:
        if name in sites:
            return _masked(stream.tensors[name], name, ticket, values_dtype)
        if name in buffers:
            return buffers[name].to(shells.tensors[name].dtype)
        if name in ticket.tuned:
            return ticket.tuned[name]
        return stream.tensors[name]

    state = State(
        tensors=LazyMapping(shells.tensors, make), ties=shells.ties, shells=shells.tensors
    )
    return StreamedModel(checkpoint=stream.checkpoint, state=state)


def _masked(weight: Tensor, name: str, ticket: Ticket, values_dtype: torch.dtype | None) -> Tensor:
    gain, flip = ticket.factors.get(name, 1.0), ticket.masks.flips.get(name)
    masked = masked_weight(weight, ticket.masks[name], gain, flip)
    return masked if values_dtype is None else rounded_weight(name, masked, values_dtype)


def rounded_weight(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight rounded to a narrower dtype, kept in its own; unchanged if its own is as narrow.

    Raises:
        ArtifactError: it has values that are too large for the narrower dtype.
    """
    if not weight.is_floating_point() or dtype.itemsize >= weight.dtype.itemsize:
        return weight
    rounded = weight.to(dtype).to(weight.dtype)
    if bool((rounded.isfinite() != weight.isfinite()).any()):
        raise ArtifactError(f"{name} has weights that are too large for {dtype}: use bf16")
    return rounded
