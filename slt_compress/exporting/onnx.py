"""Interchange: the masked model of a ticket as a folder that other runtimes open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
    PROBE,
    Artifact,
    describe_artifact,
    manifest_head,
    state_of,
    weight_files,
)
from slt_compress.artifacts.onnx_file import require_onnx
from slt_compress.checkpoints.companions import copy_companions
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.evidence.cards import artifact_card, onnx_inputs
from slt_compress.evidence.reporting import make_report
from slt_compress.exporting.onnx_conversion import Converted, convert
from slt_compress.masks import Masks
from slt_compress.runtime.opening import Opened, open_path
from slt_compress.runtime.probes import stored_probe
from slt_compress.storage.bits import bits
from slt_compress.storage.files import (
    atomic_folder,
    dtype_name,
    sha256_file,
    write_json,
    write_safetensors,
)
from slt_compress.tickets import ticket_hash
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
    if opened.ticket is None or opened.masks is None:
        raise TicketError(f"{folder} is not a ticket")
    inputs = _inputs(opened)
    _refuse_dtypes(opened.module)
    try:
        with atomic_folder(target) as part:
            _write(part, opened, opened.masks, convert(part, opened, opened.masks, inputs),
                   target.name)  # fmt: skip
    except FileExistsError as cause:
        raise ArtifactError(f"cannot export: {cause}") from cause
    except OSError as cause:
        raise ArtifactError(f"cannot export to {target}: {cause}") from cause
    return describe_artifact(target)


def _inputs(opened: Opened) -> dict[str, Tensor]:
    """The inputs of the ticket's probe, by name.

    Raises:
        ArtifactError: there are none.
    """
    left_out = {"logits"} if opened.checkpoint.task == "seq2seq" else {"logits", "labels"}
    probe = {k: v for k, v in stored_probe(opened.path).items() if k not in left_out}
    if not probe:
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


def _write(part: Path, opened: Opened, masks: Masks, made: Converted, name: str) -> None:
    """Write all that the folder has beside the model."""
    ticket, checkpoint = opened.ticket, opened.checkpoint
    if ticket is None:
        raise TicketError(f"{opened.path} is not a ticket")
    facts = {
        "inputs": made.inputs, "difference": made.difference, "tolerance": made.tolerance,
        "runs": made.runs, "onnxruntime": version("onnxruntime"), "torch": str(torch.__version__),
    }  # fmt: skip
    state = state_of(opened.module, shapes_of(masks))
    files = {file.name: sha256_file(file) for file in weight_files(part)}
    nbytes = sum((part / file).stat().st_size for file in files)
    report = make_report(ticket)
    report = replace(report, expectations=_EXPECTATIONS, sizes={**report.sizes, ONNX: nbytes})
    write_safetensors(part / PROBE, made.probe)
    manifest = manifest_head(
        checkpoint, format=ONNX, ticket_hash=ticket_hash(opened.path), ties=state.ties,
        provenance=provenance_of(ticket).to_dict(), dense_nbytes=state.nbytes,
    ) | {
        "probe": sha256_file(part / PROBE), "files": files, "onnx": facts,
        "entries": {key: _entry(key, t, masks, made.placed) for key, t in state.tensors.items()
                    if key in made.placed},
        "absent": sorted(state.tensors.keys() - made.placed.keys()),
    }  # fmt: skip
    write_json(part / DENSE_MANIFEST, manifest)
    write_json(part / CONFIG, checkpoint.config)
    copy_companions(checkpoint.folder, part)
    write_json(part / "report.json", report.to_dict() | {"onnx": facts})
    card = artifact_card(report, ONNX, ticket.origin, name)
    inputs = onnx_inputs(made.inputs, ticket.origin, name)
    (part / "README.md").write_bytes("\n".join([card, *inputs]).encode())


def _entry(name: str, tensor: Tensor, masks: Masks, placed: Mapping[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype), "format": "dense",
        "initializer": placed[name],
    }  # fmt: skip
    if name in masks:
        facts["kept"] = int(masks[name].count_nonzero())
        facts["nonzero"] = int(bits(tensor).count_nonzero())
    return facts
