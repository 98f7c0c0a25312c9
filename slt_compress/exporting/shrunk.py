"""Export the masked model of a ticket without the units that it does not need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.states import module_nbytes
from slt_compress.artifacts import (
    SHRUNK,
    Artifact,
    Evidence,
    Proof,
    write_shrunk,
)
from slt_compress.artifacts.shrinking import Shrinking, shrink
from slt_compress.checkpoints.downloaded import exported_folder
from slt_compress.checkpoints.tasks import Forward
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.evidence.cards import artifact_card, loading_guide
from slt_compress.evidence.reporting import make_report
from slt_compress.runtime.opening import Opened, open_path
from slt_compress.runtime.probes import stored_probe
from slt_compress.storage.outside import markdown
from slt_compress.storage.probe import Probe, make_probe
from slt_compress.tickets import Ticket
from slt_compress.tickets.provenance import provenance_of

_EXPECTATIONS = (
    "disk, memory and speed: the matrices themselves are smaller, for whatever runs dense ones; "
    "zeros that are left in them gain nothing",
)


def export_shrunk(
    folder: Path,
    target: Path,
    *,
    format: str,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    inputs: tuple[Tensor, ...] | None = None,
) -> Artifact:
    """Export the ticket in `folder` as a physically smaller model in the new folder `target`.

    The arguments are those of `api.export`.

    Raises:
        SltError: the ticket, its origin or the target cannot be used, nothing can be shrunk, or
            the outputs of the model would change by it.
    """
    if format != "dense":
        raise ArtifactError(f"--shrink goes with the format dense, not with {format}")
    opened = open_path(folder, origin=origin, model=model)
    ticket = opened.ticket
    if ticket is None:
        raise TicketError(f"{folder} is not a ticket")
    probe = _probe(opened, inputs)
    forward = partial(_call, opened.checkpoint.forward, probe.inputs)
    shrinking = shrink(opened.module, forward, ticket.masks)
    sizes = _sizes(opened.module, shrinking)
    folder_of_origin = exported_folder(ticket.origin, opened.checkpoint, ticket.recipe)
    return write_shrunk(
        target, _evidence(ticket, probe, sizes, _lines(opened.module, shrinking), target.name),
        checkpoint=replace(opened.checkpoint, folder=folder_of_origin), module=shrinking.module,
        proof=Proof(
            shrunk=shrinking.shrunk, masks=ticket.masks, buffers=ticket.buffers,
            tuned=ticket.tuned,
        ),
        dense_nbytes=sizes["bytes"][0],
    )  # fmt: skip


def _evidence(
    ticket: Ticket, probe: Probe, sizes: dict[str, Any], lines: list[str], name: str
) -> Evidence:
    report = make_report(ticket)
    report = replace(
        report,
        warnings=(*report.warnings, *lines),
        expectations=_EXPECTATIONS,
        sizes={**report.sizes, SHRUNK: sizes["bytes"][1]},
    )
    card = artifact_card(report, SHRUNK, ticket.origin, name)
    return Evidence(
        report=report.to_dict() | {"shrunk": sizes},
        card="\n".join(
            [card, "## What was cut", "", *(f"- {markdown(line)}" for line in lines), ""]
        ),
        ticket_hash=ticket.hash,
        provenance=provenance_of(ticket).to_dict(),
        probe=probe,
        loading=loading_guide(SHRUNK, ticket.origin),
    )


def _probe(opened: Opened, inputs: tuple[Tensor, ...] | None) -> Probe:
    """The stored probe; or, as a ticket of the user's own module has none, one from `inputs`.

    Raises:
        ArtifactError: there is neither.
    """
    stored = stored_probe(opened)
    if stored is not None:
        return stored
    if not inputs:
        raise ArtifactError(
            "a module of your own is shrunk on inputs that it takes: pass some as "
            "inputs=(tensor, ...)"
        )
    named = {str(index): value for index, value in enumerate(inputs)}
    with torch.inference_mode():
        return make_probe(named, partial(opened.checkpoint.forward, opened.module), most=None)


def _call(forward: Forward, inputs: Mapping[str, Tensor], module: nn.Module) -> Tensor:
    return forward(module, inputs)


def _lines(module: nn.Module, made: Shrinking) -> list[str]:
    """What was shrunk and what was not, a sentence each."""
    before, after = (_count(m) for m in (module, made.module))
    lines = [f"shrunk: {before:,} → {after:,} parameters"]
    for name, note in made.layers.items():
        if note.after != note.before:
            sizes = (" by ".join(map(str, shape)) for shape in (note.before, note.after))
            lines.append(f"shrunk: {name} {' → '.join(sizes)}")
        if note.left:
            lines.append(
                f"not shrunk: {note.left} empty rows or columns of {name}, as {note.reason}"
            )
    if made.shrunk.folds:
        lines.append(f"shrunk: constants moved into {', '.join(made.shrunk.folds)}")
    return lines


def _sizes(module: nn.Module, made: Shrinking) -> dict[str, Any]:
    """The same as data; pairs are before and after."""
    return {
        "layers": {name: asdict(note) for name, note in made.layers.items()},
        "folds": sorted(made.shrunk.folds),
        "parameters": [_count(m) for m in (module, made.module)],
        "bytes": [module_nbytes(m) for m in (module, made.module)],
        "difference": made.difference,
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
