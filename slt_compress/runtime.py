"""Open a ticket or an artifact as a ready model."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slt_compress.artifact import is_artifact, read_artifact, read_masks
from slt_compress.checkpoints import Checkpoint, reopen
from slt_compress.errors import SltError, SourceError, TicketError
from slt_compress.files import sha256_tensors
from slt_compress.gating import masked_weight, set_buffers
from slt_compress.masks import Masks
from slt_compress.ticket import ORIGIN, Ticket, read_origin_tensors, read_ticket

Runtime = Literal["dense"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A ticket or artifact as a model, with what is known of it.

    Attributes:
        path: the folder.
        checkpoint: the model and what data preparation needs.
        masks: which weights survive; None for a dense export, which stores no mask.
        provenance: `origin`, `gains`, `weights_hash`, `budget`, `counts`, `environment`.
        entries: stored tensors of an artifact; empty for a ticket.
        ticket: None for an artifact.
    """

    path: Path
    checkpoint: Checkpoint
    masks: Masks | None
    provenance: Mapping[str, Any]
    entries: Mapping[str, Mapping[str, Any]]
    ticket: Ticket | None

    @property
    def module(self) -> nn.Module:
        """The masked model, on the CPU in eval mode."""
        return self.checkpoint.module


def open_path(
    path: str | Path, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Opened:
    """Open a ticket or an artifact; `origin` and `model` as in `load`.

    Raises:
        SltError: the folder is neither, or damaged, or its origin cannot be had.
    """
    folder = Path(path)
    if not folder.exists():
        raise SltError(f"there is no {folder}")
    if is_artifact(folder):
        copy = None if model is None else deepcopy(model)
        loaded = read_artifact(folder, model=copy)
        return Opened(
            path=folder, checkpoint=loaded.checkpoint, masks=read_masks(folder),
            provenance=loaded.manifest.get("provenance", {}), entries=loaded.artifact.entries,
            ticket=None,
        )  # fmt: skip
    ticket = read_ticket(folder)
    checkpoint = open_origin(ticket, origin=origin, model=model)
    weights = site_weights(checkpoint.module, ticket.masks)
    if sha256_tensors(weights) != ticket.summary["weights_hash"]:
        raise TicketError(
            f"the weights of {origin or ticket.origin.get('source')} are not those that {folder} "
            f"was searched on{_versions_note(ticket)}"
        )
    apply_masks_(checkpoint.module, ticket.masks, ticket.gains)
    set_buffers(checkpoint.module, ticket.buffers)
    return Opened(
        path=folder, checkpoint=checkpoint, masks=ticket.masks, provenance=provenance_of(ticket),
        entries={}, ticket=ticket,
    )  # fmt: skip


def provenance_of(ticket: Ticket) -> dict[str, Any]:
    """What proves the weights of a model made from a ticket."""
    return {
        "origin": dict(ticket.origin),
        "gains": dict(ticket.gains),
        "budget": dict(ticket.budget),
        "weights_hash": ticket.summary["weights_hash"],
        "counts": ticket.summary["counts"],
        "environment": ticket.summary["extra"]["environment"],
    }


def open_origin(
    ticket: Ticket, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Checkpoint:
    """The checkpoint that a ticket was searched on, its weights untouched.

    Raises:
        SourceError: it cannot be had, or the ticket is of a module of the user's own and `model`
            is missing.
    """
    if ticket.origin.get("kind") == "module":
        if model is None:
            raise SourceError(
                f"{ticket.path} was searched on a module of your own: hand it over with "
                "slt_compress.load(PATH, model=module)"
            )
        return module_checkpoint(deepcopy(model).cpu().eval())
    checkpoint = reopen(ticket.origin, override=origin)
    stored = dict(ticket.stored)
    if ORIGIN in ticket.summary["files"]:
        stored |= read_origin_tensors(ticket.path)
    state = checkpoint.module.state_dict()
    for name in checkpoint.stored:
        if name not in stored or name not in state or stored[name].shape != state[name].shape:
            raise TicketError(f"{ticket.path} does not hold the stored tensor {name}")
        state[name].copy_(stored[name])
    return checkpoint


def module_checkpoint(module: nn.Module) -> Checkpoint:
    """A module of the user's own, as a checkpoint."""
    return Checkpoint(
        source=type(module).__name__, kind="module", revision=None, family="module",
        task="features", module=module, config={}, folder=None, classes=None, num_classes=None,
        trained_head=False, init=None, weights=None, license=None, file_keys={}, stored=(),
    )  # fmt: skip


def site_weights(module: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the sites, by name.

    Raises:
        TicketError: the module has no such weight, or one of another shape.
    """
    weights: dict[str, Tensor] = {}
    for name, mask in masks.items():
        path, _, param = name.rpartition(".")
        try:
            weight = getattr(module.get_submodule(path), param)
        except AttributeError:
            raise TicketError(f"the model has no weight {name}: was it made by other versions?") \
                from None  # fmt: skip
        if not isinstance(weight, Tensor) or weight.shape != mask.shape:
            raise TicketError(f"{name} of the model does not have the shape of its mask")
        weights[name] = weight.detach()
    return weights


def apply_masks_(module: nn.Module, masks: Masks, gains: Mapping[str, float]) -> None:
    """Turn the weights of the sites into fl(gain * weight) where kept and 0 elsewhere, in place.

    A weight under a parametrization becomes a plain parameter.
    """
    with torch.no_grad():
        for name, mask in masks.items():
            path, _, param = name.rpartition(".")
            owner = module.get_submodule(path)
            if parametrize.is_parametrized(owner, param):
                parametrize.remove_parametrizations(owner, param, leave_parametrized=True)
            weight = getattr(owner, param)
            weight.copy_(masked_weight(weight, mask, gains.get(name, 1.0)))


def environment(module: nn.Module) -> dict[str, Any]:
    """What bit-identical outputs of a module depend on beside the module."""
    return {
        "device": next(module.parameters()).device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "timm": version("timm"),
    }


def as_runtime(opened: Opened, runtime: str) -> nn.Module:
    """The model on a runtime; `dense` is torch's own kernels on weights with zeros.

    Raises:
        SltError: an unknown runtime.
    """
    if runtime != "dense":
        raise SltError(f"unknown runtime {runtime!r}; known: dense")
    return opened.module


def _versions_note(ticket: Ticket) -> str:
    from_versions = ticket.origin.get("versions") or {}
    listed = ", ".join(f"{name} {value}" for name, value in sorted(from_versions.items()) if value)
    return f" (with {listed}); --origin PATH says where they are" if listed else ""
