"""Verify an exported ONNX model: its weights against the origin, its logits by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from slt_compress.artifacts import (
    described,
    dtype_of,
    expect_probe,
    open_manifest,
)
from slt_compress.artifacts.onnx_file import (
    answer,
    difference_of,
    open_session,
    read_weights,
    require_onnx,
)
from slt_compress.checkpoints import Checkpoint
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.evidence.checks import Check, Verification, against_origin
from slt_compress.runtime.opening import Opened, origin_of
from slt_compress.runtime.probes import stored_probe
from slt_compress.storage.bits import bits
from slt_compress.storage.manifests import Manifest
from slt_compress.tickets.provenance import check_provenance

LARGEST_TOLERANCE = 0.01
"""Of what an export may have allowed, relative to the largest logit; float16 has 0.002."""


def verify_onnx(folder: Path, *, origin: str | Path | None = None) -> Verification:
    """Check an ONNX model against the origin that its folder records.

    Raises:
        SltError: the extra is not installed, or the origin cannot be reached.
    """
    require_onnx()
    step = "files"
    try:
        manifest = open_manifest(folder)
        opened = _opened(folder, manifest)
        known = check_provenance(opened.provenance, folder, ArtifactError)
        detail = "version, hashes, sizes, counts and the zeros of every site agree"
        checks = [Check(name="files", ok=True, detail=detail)]
        source = origin_of(opened, origin=origin)
        step, absent = "origin", manifest.names("absent")
        for check in against_origin(opened, known, source, absent):
            if check.name == "ungated" and absent:
                more = (
                    f"; {len(absent)} more tensors are not in the graph, which does not need them"
                )
                check = replace(check, detail=check.detail + more)
            checks.append(check)
        step = "logits"
        checks.append(_logits(folder, manifest))
    except (TicketError, ArtifactError) as error:
        failed = Check(name=step, ok=False, detail=str(error))
        return Verification(path=folder, checks=(failed,))
    return Verification(path=folder, checks=tuple(checks))


def _opened(folder: Path, manifest: Manifest) -> Opened:
    """The weights that the file holds, as a module that cannot be called.

    Raises:
        ArtifactError: a file is missing or changed, or does not hold what the manifest says.
    """
    entries = described(folder, manifest).entries
    expect_probe(folder, manifest)
    for name in manifest.object("files"):
        manifest.checked_file(name)
    stored, weights = read_weights(folder), {}
    for name, entry in entries.items():
        tensor = stored.get(str(entry.get("initializer")))
        shape, dtype = tuple(entry["shape"]), dtype_of(entry["dtype"])
        if tensor is None or tensor.shape != shape or tensor.dtype is not dtype:
            raise manifest.damaged(f"its model does not hold {name} as it says")
        if "kept" in entry and int(bits(tensor).count_nonzero()) != entry.get("nonzero"):
            raise manifest.damaged(f"{name} does not have its recorded number of zeros")
        weights[name] = tensor
    for alias, name in manifest.object("ties").items():
        if name in weights:
            weights[alias] = weights[name]
    return Opened(
        path=folder, checkpoint=Checkpoint.of_module(_shell(weights)), masks=None,
        provenance=manifest.values.get("provenance"), entries=entries, ticket=None,
    )  # fmt: skip


def _shell(weights: Mapping[str, Tensor]) -> nn.Module:
    """A module that has tensors under their names and nothing else."""
    root = nn.Module()
    for name, tensor in weights.items():
        owner, (*path, leaf) = root, name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def _logits(folder: Path, manifest: Manifest) -> Check:
    """What onnxruntime makes of the probe."""
    probe = stored_probe(folder)
    wanted, share = probe.pop("logits", torch.empty(0)), manifest.object("onnx").get("tolerance")
    if not isinstance(share, float) or not 0.0 < share <= LARGEST_TOLERANCE or not wanted.numel():
        raise manifest.damaged(f"it has no probe, or a tolerance of {str(share)[:40]}")
    found = answer(open_session(folder), probe)
    worst, bound = difference_of(found, wanted), share * float(wanted.double().abs().max())
    detail = (
        f"onnxruntime's differ by up to {worst:.2e} on {len(wanted)} probe inputs, within "
        f"{share:.0e} of the largest logit is {bound:.2e}"
    )
    return Check(name="logits", ok=worst <= bound, detail=detail)
