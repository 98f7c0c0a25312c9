"""Export the masked model of a ticket, with all that a folder needs beside its weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from slt_compress.anatomy.states import environment, site_parameters
from slt_compress.artifacts import (
    MAX_SHARD_SIZE,
    Artifact,
    ArtifactContent,
    Evidence,
    write_artifact,
)
from slt_compress.artifacts.formats import VALUES_DTYPES
from slt_compress.checkpoints.downloaded import exported_folder
from slt_compress.errors import ArtifactError
from slt_compress.evidence.cards import artifact_card, in_chans_warning, loading_guide
from slt_compress.evidence.reporting import make_report
from slt_compress.exporting.streaming import rounded_weight, stream_ticket
from slt_compress.runtime.opening import Opened, open_path
from slt_compress.storage.probe import Probe
from slt_compress.tickets import Ticket, read_probe, read_ticket
from slt_compress.tickets.origin import stored_of
from slt_compress.tickets.provenance import provenance_of

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def export_ticket(
    folder: Path,
    target: Path,
    *,
    format: str,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    values_dtype: str | None = None,
    max_shard_size: str | int | None = None,
) -> Artifact:
    """Export the masked model of the ticket in `folder` into the new folder `target`.

    The arguments are those of `api.export`.

    Raises:
        SltError: the ticket, its origin or the target cannot be used.
    """
    limit, rounded = parse_size(max_shard_size), parse_values_dtype(values_dtype)
    ticket = read_ticket(folder, lazily=True)
    probe, report, provenance = read_probe(ticket), make_report(ticket), provenance_of(ticket)
    streamed = None
    if model is None and not (rounded is not None and probe):
        streamed = stream_ticket(ticket, format=format, origin=origin, values_dtype=rounded)
    if streamed is not None:
        checkpoint, state = streamed.checkpoint, streamed.state
    else:
        opened = _opened_whole(ticket, format, origin=origin, model=model)
        checkpoint, state = opened.checkpoint, None
        if rounded is not None:
            round_values_(opened, rounded)
        if rounded is not None and probe:
            # From here on the folder proves the rounded model, as it is on this machine.
            provenance = replace(provenance, environment=environment(opened.module))
            probe = _answered(opened, probe)
    if rounded is not None:
        report = replace(report, warnings=(*report.warnings, _lossy(values_dtype)))
    if format == "dense" and (warning := in_chans_warning(report, ticket.origin)):
        report = replace(report, warnings=(*report.warnings, warning))
    evidence = Evidence(
        report=report.to_dict(), ticket_hash=ticket.hash, provenance=provenance.to_dict(),
        card=artifact_card(report, format, ticket.origin, target.name, rounded_to=values_dtype),
        probe=probe, loading=loading_guide(format, ticket.origin),
    )  # fmt: skip
    folder_of_origin = exported_folder(ticket.origin, checkpoint, ticket.recipe)
    checkpoint = replace(checkpoint, folder=folder_of_origin)
    content = ArtifactContent(
        checkpoint=checkpoint, module=checkpoint.module, masks=ticket.masks, evidence=evidence,
        streamed=state, buffers=ticket.buffers, stored=stored_of(ticket),
        orders=ticket.orders,
        tuned=ticket.tuned,
    )  # fmt: skip
    return write_artifact(
        target, content, format=format, values_dtype=rounded, max_shard_size=limit
    )


def _opened_whole(
    ticket: Ticket, format: str, *, origin: str | Path | None, model: nn.Module | None
) -> Opened:
    opened = open_path(ticket, origin=origin, model=model)
    if format == "dense":
        refuse_flattened(opened)
    return opened


def refuse_flattened(opened: Opened) -> None:
    """Refuse a model whose library would write parts of the masked weights instead of them.

    Raises:
        ArtifactError: a site was computed by a parametrization.
    """
    if opened.flattened and opened.checkpoint.family in ("transformers", "timm"):
        raise ArtifactError(
            f"{opened.flattened[0]} is computed by a parametrization (weight norm), so the model's "
            "library cannot store it masked: use --format sparse-csr"
        )


def parse_values_dtype(name: str | None) -> torch.dtype | None:
    """The dtype that kept values are rounded to.

    Raises:
        ArtifactError: there is no such name.
    """
    if name is None:
        return None
    if name not in VALUES_DTYPES:
        raise ArtifactError(f"unknown dtype {name!r} of values; known: {', '.join(VALUES_DTYPES)}")
    return VALUES_DTYPES[name]


def parse_size(size: str | int | None) -> int:
    """Bytes of a size such as `2GB`, `500MB` or `1GiB`; None is the default.

    Raises:
        ArtifactError: it is not such a size.
    """
    if size is None:
        return MAX_SHARD_SIZE
    parts = re.fullmatch(r"\s*(\d+)\s*([KMG]?I?B?)\s*", str(size).upper())
    if parts is None or parts[2] not in _UNITS or int(parts[1]) == 0:
        raise ArtifactError(f"{size!r} is not a file size; expected one such as 500MB or 2GB")
    return int(parts[1]) * _UNITS[parts[2]]


def round_values_(opened: Opened, dtype: torch.dtype) -> None:
    """Round the weights of all sites to a narrower dtype, in place.

    Raises:
        ArtifactError: a weight is too large for it.
    """
    for name, weight in site_parameters(opened.module, opened.shapes).items():
        weight.data = rounded_weight(name, weight.detach(), dtype)


def _answered(opened: Opened, probe: Probe) -> Probe:
    """The probe with the logits of the model as it is now."""
    with torch.inference_mode():
        logits = opened.checkpoint.forward(opened.module, probe.inputs)
    return probe.answered(logits)


def _lossy(name: str | None) -> str:
    return (
        f"lossy: kept weights are the origin's rounded to {name}; the metrics are of the model"
        " before that"
    )
