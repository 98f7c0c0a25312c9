"""Export the masked model of a ticket as ONNX, in a folder that other runtimes open."""

from __future__ import annotations

from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.states import shapes_of
from slt_compress.artifacts import (
    CONFIG,
    DENSE_MANIFEST,
    ONNX,
    Artifact,
    Entry,
    Evidence,
    describe_artifact,
    entry_dicts,
    manifest_head,
    new_folder,
    state_of,
    weight_files,
    write_evidence,
    write_probe,
)
from slt_compress.artifacts.onnx_file import require_onnx
from slt_compress.checkpoints.downloaded import exported_folder
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.evidence.cards import artifact_card, loading_guide, onnx_inputs
from slt_compress.evidence.reporting import make_report
from slt_compress.exporting.onnx_conversion import Converted, convert
from slt_compress.masks import Masks, count_kept
from slt_compress.runtime.opening import Opened, open_path
from slt_compress.runtime.probes import stored_probe
from slt_compress.storage.bits import bits
from slt_compress.storage.files import dtype_name, sha256_file, write_json
from slt_compress.storage.probe import Probe
from slt_compress.tickets import Ticket
from slt_compress.tickets.provenance import provenance_of

_EXPECTATIONS = (
    "disk: none smaller, as an ONNX model stores zeros like other numbers",
    "speed: onnxruntime runs dense kernels on the zeros and gains nothing from them",
)
_DTYPES = (torch.float32, torch.float16, torch.float64)


def export_onnx(
    folder: Path,
    target: Path,
    *,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    values_dtype: str | None = None,
    max_shard_size: str | int | None = None,
) -> Artifact:
    """Export the masked model of the ticket in `folder` as ONNX into the new folder `target`.

    The arguments are those of `api.export`.

    Raises:
        SltError: the extra is missing, the ticket, its origin or the target cannot be used, torch
            cannot write the model as ONNX, or what it wrote is not the masked model.
    """
    if values_dtype is not None:
        raise ArtifactError("the format onnx has no values to round; choose another")
    if max_shard_size is not None:
        raise ArtifactError("an ONNX model has one file of weights: leave out --max-shard-size")
    require_onnx()
    opened = open_path(folder, origin=origin, model=model)
    ticket = opened.ticket
    if ticket is None:
        raise TicketError(f"{folder} is not a ticket")
    probe = _traceable(opened)
    _refuse_dtypes(opened.module)
    with new_folder(target) as part:
        converted = convert(part, opened, ticket.masks, probe)
        _write(part, opened, ticket, converted, target.name)
    return describe_artifact(target)


def _traceable(opened: Opened) -> Probe:
    """The ticket's probe, with the inputs that the model is traced on.

    Raises:
        ArtifactError: there are none.
    """
    probe = stored_probe(opened)
    if probe is not None and opened.checkpoint.task != "seq2seq":
        probe = probe.without("labels")
    if probe is None or not probe.inputs:
        raise ArtifactError(
            f"{opened.path} stores no inputs to trace its model on: only a search of a transformers"
            " or timm model or of a reference net does, not import, merge or a module of your own"
        )
    return probe


def _refuse_dtypes(module: nn.Module) -> None:
    odd = [p.dtype for p in module.parameters() if p.is_floating_point() and p.dtype not in _DTYPES]
    if odd:
        raise ArtifactError(
            f"onnxruntime has no kernels for {dtype_name(odd[0])} on CPUs, so the export could not "
            "be checked: the format onnx takes float32 and float16 models"
        )


def _write(part: Path, opened: Opened, ticket: Ticket, made: Converted, name: str) -> None:
    """Write everything that the folder holds beside the model."""
    checkpoint, masks = opened.checkpoint, ticket.masks
    facts = {
        "inputs": [asdict(value) for value in made.inputs], "difference": made.difference,
        "tolerance": made.tolerance, "runs": made.runs, "onnxruntime": version("onnxruntime"),
        "torch": str(torch.__version__),
    }  # fmt: skip
    state = state_of(opened.module, shapes_of(masks))
    files = {file.name: sha256_file(file) for file in weight_files(part)}
    evidence = _evidence(ticket, made, facts, name, nbytes=sum(
        (part / file).stat().st_size for file in files
    ))  # fmt: skip
    entries = {
        key: _entry(key, tensor, masks, made.placed[key])
        for key, tensor in state.tensors.items()
        if key in made.placed
    }
    manifest = manifest_head(
        checkpoint, evidence, format=ONNX, dense_nbytes=state.nbytes, ties=state.ties
    ) | {
        **write_probe(part, evidence),
        "files": files,
        "onnx": facts,
        "entries": entry_dicts(entries),
        "absent": sorted(state.tensors.keys() - made.placed.keys()),
    }
    write_json(part / CONFIG, checkpoint.config)
    folder_of_origin = exported_folder(ticket.origin, checkpoint, ticket.recipe)
    beside = write_evidence(part, replace(checkpoint, folder=folder_of_origin), evidence)
    write_json(part / DENSE_MANIFEST, {**manifest, **beside})


def _evidence(
    ticket: Ticket, made: Converted, facts: dict[str, Any], name: str, *, nbytes: int
) -> Evidence:
    report = make_report(ticket)
    report = replace(report, expectations=_EXPECTATIONS, sizes={**report.sizes, ONNX: nbytes})
    card = artifact_card(report, ONNX, ticket.origin, name)
    return Evidence(
        report=report.to_dict() | {"onnx": facts},
        card="\n".join([card, *onnx_inputs(made.inputs, ticket.origin, name)]),
        ticket_hash=ticket.hash,
        provenance=provenance_of(ticket).to_dict(),
        probe=made.probe,
        loading=loading_guide(ONNX, ticket.origin),
    )


def _entry(name: str, tensor: Tensor, masks: Masks, initializer: str) -> Entry:
    entry = Entry.whole(tensor, initializer=initializer)
    if name not in masks:
        return entry
    nonzero = int(bits(tensor).count_nonzero())
    return replace(entry, kept=count_kept(masks[name]), nonzero=nonzero)
