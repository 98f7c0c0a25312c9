"""Verify: prove that a ticket or artifact is the masked origin and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from slt_compress.anatomy.states import environment
from slt_compress.artifacts import ONNX, Artifact
from slt_compress.artifacts.shrinking import TOLERANCE, tolerance_of
from slt_compress.errors import (
    ArtifactError,
    OwnModuleError,
    PythonOnlyError,
    SltError,
    TicketError,
)
from slt_compress.evidence.checks import Check, Verification, against_origin, failed
from slt_compress.evidence.completeness import files_check, without_probe
from slt_compress.evidence.fold_checks import folds_held
from slt_compress.evidence.import_checks import as_imported
from slt_compress.evidence.onnx_checks import verify_onnx
from slt_compress.runtime.opening import Opened, describe_folder, open_path, origin_of
from slt_compress.runtime.probes import stored_probe
from slt_compress.storage.probe import Probe
from slt_compress.tickets import Ticket
from slt_compress.tickets.provenance import Provenance


def verify_folder(
    path: str | Path, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Verification:
    """Check a ticket or an artifact of any format against its origin.

    Damage is a failed check. The manifest and the origin are opened once each.

    Raises:
        SltError: the folder does not exist, or the origin cannot be reached.
    """
    folder = Path(path)
    try:
        described = describe_folder(folder)
    except (TicketError, ArtifactError) as error:
        return Verification(path=folder, checks=(failed("files", str(error)),))
    if isinstance(described, Artifact) and described.format == ONNX:
        return verify_onnx(described, origin=origin)
    return _verify_model(described, origin, model)


def _verify_model(
    described: Ticket | Artifact, origin: str | Path | None, model: nn.Module | None
) -> Verification:
    """The checks of a folder that opens as a model."""
    step = "origin" if isinstance(described, Ticket) else "files"
    try:
        opened = open_path(described, origin=origin, model=model, keep_origin=True)
        step = "files"
        known = opened.provenance()
        checks = [files_check(opened, "version, hashes, sizes and counts agree")]
        source = origin_of(opened, origin=origin, model=model)
        step = "origin"
        probe = stored_probe(opened)
        checks += against_origin(opened, known, source, probe)
        checks += as_imported(opened)
        step = "logits"
        checks.append(_logits(opened, known, probe))
        checks += folds_held(opened, known, probe)
    except (TicketError, ArtifactError) as error:
        return Verification(path=described.path, checks=(failed(step, str(error)),))
    return Verification(path=described.path, checks=tuple(checks))


def verify_apart(path: Path, *, origin: str | Path | None = None) -> Verification:
    """As `verify_folder`, in a process of its own that shares nothing with this one.

    Raises:
        SltError: the folder does not exist, or the origin cannot be reached.
    """
    command = [sys.executable, "-m", "slt_compress", "verify", str(path), "--json"]
    if origin is not None:
        command += ["--origin", str(origin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        checks = tuple(Check(**check) for check in json.loads(done.stdout)["checks"])
    except (ValueError, KeyError, TypeError):
        kind, reason = _said(done.stderr)
        if kind == PythonOnlyError.__name__:  # said for people at a command line
            raise OwnModuleError(path) from None
        raise SltError(reason or f"verify ended with code {done.returncode}") from None
    return Verification(path=path, checks=checks)


def _said(stderr: str) -> tuple[str, str]:
    """Kind and message of the error in the last line of JSON, or that line as it is."""
    last = (stderr.strip().splitlines() or [""])[-1]
    try:
        error = json.loads(last)["error"]
        return str(error["kind"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "", last


def _logits(opened: Opened, known: Provenance, probe: Probe | None) -> Check:
    """Compare what the model gives for the probe with its logits."""
    if probe is None:
        return without_probe(opened)
    wanted = probe.shape
    try:
        with torch.inference_mode():
            logits = opened.checkpoint.forward(opened.module, probe.inputs)
    except Exception as error:  # a model raises whatever it likes
        return failed("logits", f"the model does not take the probe: {type(error).__name__}")
    if tuple(logits.shape) != wanted:
        return failed("logits", f"shape {tuple(logits.shape)} instead of {wanted}")
    if probe.is_answered_by(logits):
        examples = wanted[0] if wanted else 1
        return Check(name="logits", ok=True, detail=f"bit-identical on {examples} probe inputs")
    worst = probe.difference(logits)
    share = TOLERANCE if opened.proof is None else tolerance_of(opened.module)
    bound = share * probe.largest
    if opened.proof is None and environment(opened.module) == known.environment:
        return failed("logits", f"differ by up to {worst:.2e} in the environment of the search, "
                       "where they must be bit-identical")  # fmt: skip
    detail = (
        f"differ by up to {worst:.2e}, within {share:.0e} of the largest logit is {bound:.2e} "
        f"(tolerance used because {'it is shrunk' if opened.proof else 'the environment differs'})"
    )
    return Check(name="logits", ok=worst <= bound, detail=detail)
