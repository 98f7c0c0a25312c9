"""Export the masked model of a ticket without the units that it does not need."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.artifacts import (
    SHRUNK,
    Artifact,
    Proof,
    describe_artifact,
    write_shrunk,
)
from slt_compress.artifacts.shrinking import Shrinking, shrink
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.evidence.cards import artifact_card
from slt_compress.evidence.reporting import make_report
from slt_compress.runtime.opening import Opened, open_path
from slt_compress.tickets import read_probe, ticket_hash
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
    found = opened.ticket
    if found is None or opened.masks is None:
        raise TicketError(f"{folder} is not a ticket")
    probe = _probe(opened, read_probe(folder), inputs)
    forward = opened.checkpoint.forward
    asked = {name: value for name, value in probe.items() if name != "logits"}
    shrinking = shrink(opened.module, partial(_call, forward, asked), opened.masks)
    lines, sizes = _lines(opened.module, shrinking), _sizes(opened.module, shrinking)
    report = make_report(found)
    report = replace(
        report,
        warnings=(*report.warnings, *lines),
        expectations=_EXPECTATIONS,
        sizes={**report.sizes, SHRUNK: sizes["bytes"][1]},
    )
    card = artifact_card(report, SHRUNK, found.origin, target.name)
    write_shrunk(
        target, checkpoint=opened.checkpoint, module=shrinking.module,
        proof=Proof(shrunk=shrinking.shrunk, masks=opened.masks, buffers=found.buffers),
        dense_nbytes=sizes["bytes"][0], report=report.to_dict() | {"shrunk": sizes},
        card="\n".join([card, "## What was cut", "", *(f"- {line}" for line in lines), ""]),
        ticket_hash=ticket_hash(folder), provenance=provenance_of(found).to_dict(), probe=probe,
    )  # fmt: skip
    return describe_artifact(target)


def _probe(
    opened: Opened, stored: dict[str, Tensor], inputs: tuple[Tensor, ...] | None
) -> dict[str, Tensor]:
    """Inputs by name and the masked model's logits on them.

    A ticket of a module of the user's own has none: they are made of `inputs`.

    Raises:
        ArtifactError: there are none.
    """
    if stored:
        return stored
    if not inputs:
        raise ArtifactError(
            "a module of your own is shrunk on inputs that it takes: hand some over as "
            "inputs=(tensor, ...)"
        )
    named = {str(index): value for index, value in enumerate(inputs)}
    forward = opened.checkpoint.forward
    with torch.inference_mode():
        return {**named, "logits": forward(opened.module, named).clone()}


def _call(forward: Any, inputs: dict[str, Tensor], module: nn.Module) -> Tensor:
    outputs: Tensor = forward(module, inputs)
    return outputs


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
        "bytes": [_nbytes(m) for m in (module, made.module)],
        "difference": made.difference,
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _nbytes(module: nn.Module) -> int:
    """Bytes of everything a module saves, what is tied once."""
    tensors = {id(tensor): tensor for tensor in module.state_dict(keep_vars=True).values()}
    return sum(tensor.nbytes for tensor in tensors.values())
