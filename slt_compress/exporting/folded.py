"""Fold the orders of inputs of N:M masks into the layers before, for a dense export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slt_compress.anatomy.readers import readers_of
from slt_compress.artifacts import Artifact, ArtifactContent, Evidence, write_artifact
from slt_compress.artifacts.folding import Fold, fold_, folded_masks
from slt_compress.artifacts.shrinking import tolerance_of
from slt_compress.checkpoints.downloaded import exported_folder
from slt_compress.errors import ArtifactError
from slt_compress.evidence.cards import artifact_card
from slt_compress.evidence.reporting import make_report
from slt_compress.exporting.folders import parse_size, refuse_flattened
from slt_compress.runtime.opening import open_path
from slt_compress.storage.probe import Probe
from slt_compress.tickets import Ticket, read_probe, read_ticket
from slt_compress.tickets.provenance import provenance_of

# The BatchNorm behind a convolution of a residual block, by their names in the block.
_NORMS = {"conv1": ("bn1", "norm1"), "conv2": ("bn2", "norm2")}


def export_folded(
    folder: Path,
    target: Path,
    *,
    format: str,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    max_shard_size: str | int | None = None,
) -> Artifact:
    """Export the ticket in `folder` with its orders of inputs folded, where the graph allows.

    The arguments are those of `api.export`.

    Raises:
        SltError: the ticket, its origin or the target cannot be used, it has no orders or no probe
            to check a fold on, or none of them can be folded.
    """
    if format != "dense":
        raise ArtifactError(f"--fold goes with the format dense, not with {format}")
    ticket, limit = read_ticket(folder), parse_size(max_shard_size)
    probe = read_probe(ticket) if ticket.orders else None
    if probe is None:
        lacks = "probe to check a fold on" if ticket.orders else "orders of inputs (--permute)"
        raise ArtifactError(f"{folder} has no {lacks}: export it without --fold")
    opened = open_path(ticket, origin=origin, model=model)
    refuse_flattened(opened)
    checkpoint = opened.checkpoint
    folds = fold_what_can_be_(opened.module, ticket.orders, checkpoint.forward, probe)
    if not folds:
        raise ArtifactError(
            f"none of the {len(ticket.orders)} orders of {folder} can be folded into the layers "
            "before: export it without --fold"
        )
    content = ArtifactContent(
        checkpoint=replace(
            checkpoint, folder=exported_folder(ticket.origin, checkpoint, ticket.recipe)
        ),
        module=opened.module, masks=folded_masks(ticket.masks, folds), folds=folds,
        evidence=_evidence(ticket, probe, folds, target.name),
    )  # fmt: skip
    return write_artifact(target, content, format=format, max_shard_size=limit)


def fold_what_can_be_(
    module: nn.Module,
    orders: Mapping[str, tuple[int, ...]],
    forward: Callable[[nn.Module, Any], Any],
    probe: Probe,
) -> dict[str, Fold]:
    """Fold the orders of a masked module in place, one by one; those that change no output stay."""
    folds: dict[str, Fold] = {}
    for name, order in orders.items():
        fold = Fold(order=order, dim=1, givers=tuple(_givers(module, name, len(order))))
        if not fold.givers:
            continue
        fold_(module, {name: fold})
        if _same_outputs(module, forward, probe):
            folds[name] = fold
        else:
            fold_(module, {name: fold}, back=True)
    return folds


def _same_outputs(
    module: nn.Module, forward: Callable[[nn.Module, Any], Any], probe: Probe
) -> bool:
    with torch.inference_mode():
        logits: Tensor = forward(module, probe.inputs)
    return probe.difference(logits) <= tolerance_of(module) * probe.largest


def _givers(module: nn.Module, site: str, inputs: int) -> Iterator[str]:
    """Parameters and buffers whose first dimension gives the inputs of a weight; none if unsure."""
    reader, _, param = site.rpartition(".")
    if param != "weight" or not _is_plain(module.get_submodule(reader)):
        return
    for name, child in module.named_modules():
        if name == reader or not _is_plain(child) or reader not in readers_of(module, name):
            continue
        for holder in (name, *_norms_behind(module, name)):
            owner = module.get_submodule(holder)
            for leaf, tensor in (*owner.named_parameters(), *owner.named_buffers()):
                if tensor.dim() and len(tensor) == inputs and "." not in leaf:
                    yield f"{holder}.{leaf}"


def _is_plain(child: nn.Module) -> bool:
    """Whether a module's weight has outputs in front of all its inputs."""
    if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return child.groups == 1
    return isinstance(child, nn.Linear)


def _norms_behind(module: nn.Module, name: str) -> Iterator[str]:
    """The BatchNorm that the outputs of a layer go through before they are read."""
    holder, _, leaf = name.rpartition(".")
    parent = module.get_submodule(holder)
    children = [child for child, _ in parent.named_children()]
    if isinstance(parent, nn.Sequential):
        later = children[children.index(leaf) + 1 :]
        behind = list(takewhile(lambda child: not _is_plain(parent.get_submodule(child)), later))
    else:
        behind = [child for child in _NORMS.get(leaf, ()) if child in children]
    for child in behind:
        if isinstance(parent.get_submodule(child), _BatchNorm):
            yield f"{holder}.{child}".removeprefix(".")


def _evidence(ticket: Ticket, probe: Probe, folds: Mapping[str, Fold], name: str) -> Evidence:
    report = make_report(ticket)
    line = (
        f"{len(folds)} of {len(ticket.orders)} orders of inputs are folded into the layers before: "
        f"in the file, masks such as that of {next(iter(folds))} are {ticket.budget['pattern']} "
        "along neighbouring inputs; `load` puts all weights back in their own order"
    )
    report = replace(report, warnings=(*report.warnings, line))
    return Evidence(
        report=report.to_dict(), card=artifact_card(report, "dense", ticket.origin, name),
        ticket_hash=ticket.hash, provenance=provenance_of(ticket).to_dict(), probe=probe,
    )  # fmt: skip
