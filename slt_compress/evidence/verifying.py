"""Verify: prove that a ticket or artifact is the masked origin and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from slt_compress.anatomy.states import environment
from slt_compress.artifacts import (
    ONNX,
    is_artifact,
    open_manifest,
)
from slt_compress.artifacts.shrinking import TOLERANCE, tolerance_of
from slt_compress.checkpoints.tasks import forward_of
from slt_compress.errors import ArtifactError, SltError, TicketError
from slt_compress.evidence.checks import Check, Verification, _failed, against_origin
from slt_compress.evidence.import_checks import as_imported
from slt_compress.evidence.onnx_checks import verify_onnx
from slt_compress.runtime.opening import Opened, open_path, origin_of
from slt_compress.runtime.probes import stored_probe
from slt_compress.tickets import read_ticket
from slt_compress.tickets.provenance import Provenance, check_provenance


def verify_path(
    path: str | Path, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Verification:
    """Check a ticket or artifact against its origin.

    Damage is a failed check.

    Raises:
        SltError: the folder does not exist, or the origin cannot be reached.
    """
    folder = Path(path)
    if not folder.exists():
        raise SltError(f"there is no {folder}")
    step = "files"
    try:
        if not is_artifact(folder):
            read_ticket(folder)
            step = "origin"
        opened = open_path(folder, origin=origin, model=model)
        step = "files"
        known = check_provenance(opened.provenance, folder, ArtifactError)
        checks = [Check(name="files", ok=True, detail="version, hashes, sizes and counts agree")]
        source = origin_of(opened, origin=origin, model=model)
        step = "origin"
        checks += against_origin(opened, known, source)
        checks += as_imported(opened)
        step = "logits"
        checks.append(_logits(opened, known))
    except (TicketError, ArtifactError) as error:
        return Verification(path=folder, checks=(_failed(step, str(error)),))
    return Verification(path=folder, checks=tuple(checks))


def verify_apart(path: Path, *, origin: str | Path | None = None) -> Verification:
    """As `verify_path`, in a process of its own that shares nothing with this one.

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
        said = done.stderr.strip().rpartition("error: ")[2]
        raise SltError(said or f"verify ended with code {done.returncode}") from None
    return Verification(path=path, checks=checks)


def _logits(opened: Opened, known: Provenance) -> Check:
    probe = stored_probe(opened.path)
    if not probe:
        return Check(name="logits", ok=True, detail="not tested: no probe was stored")
    wanted = probe.pop("logits", torch.empty(0))
    forward = forward_of(opened.checkpoint.family, opened.checkpoint.task)
    try:
        with torch.inference_mode():
            found = forward(opened.module, probe)
    except Exception as error:  # the model refuses stored inputs in whatever way it likes
        return _failed("logits", f"the probe is no input of the model: {type(error).__name__}")
    if found.shape != wanted.shape:
        return _failed("logits", f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    if torch.equal(found, wanted):
        return Check(name="logits", ok=True, detail=f"bit-identical on {len(wanted)} probe inputs")
    worst = float((found.double() - wanted.double()).abs().max())
    share = TOLERANCE if opened.proof is None else tolerance_of(opened.module)
    bound = share * float(wanted.double().abs().max())
    if opened.proof is None and environment(opened.module) == known.environment:
        return _failed("logits", f"differ by up to {worst:.2e} in the environment of the search, "
                       "where they must be bit-identical")  # fmt: skip
    detail = (
        f"differ by up to {worst:.2e}, within {share:.0e} of the largest logit is {bound:.2e} "
        f"(tested so because {'it is shrunk' if opened.proof else 'the environment differs'})"
    )
    return Check(name="logits", ok=worst <= bound, detail=detail)


def is_onnx(folder: Path) -> bool:
    """Whether a folder is an exported ONNX model, whole or damaged."""
    try:
        return is_artifact(folder) and open_manifest(folder).values.get("format") == ONNX
    except ArtifactError:  # which of the formats it was in cannot be said
        return False


def verify_folder(
    path: str | Path, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Verification:
    """Check a ticket or an artifact of any format; `model` as in `verify_path`.

    Raises:
        SltError: as in `verify_path` and `verify_onnx`.
    """
    if is_onnx(Path(path)):
        return verify_onnx(Path(path), origin=origin)
    return verify_path(path, origin=origin, model=model)
