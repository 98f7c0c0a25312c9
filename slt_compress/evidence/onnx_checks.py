"""Verify an exported ONNX model: its weights against the origin, its logits by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from slt_compress.artifacts import Artifact, expect_probe
from slt_compress.artifacts.beside import check_beside
from slt_compress.artifacts.onnx_file import (
    answer,
    open_session,
    read_weights,
    require_onnx,
)
from slt_compress.artifacts.weight_files import check_weights
from slt_compress.checkpoints import Checkpoint
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.evidence.checks import Check, Verification, against_origin, failed
from slt_compress.evidence.completeness import files_check
from slt_compress.runtime.opening import Opened, origin_of
from slt_compress.runtime.probes import stored_probe
from slt_compress.storage.bits import bits
from slt_compress.storage.probe import Probe

LARGEST_TOLERANCE = 0.01
"""The largest that an export may have allowed, relative to the largest logit; float16 has 0.002."""


def verify_onnx(artifact: Artifact, *, origin: str | Path | None = None) -> Verification:
    """Check an ONNX model against the origin that its folder records.

    Raises:
        SltError: the extra is not installed, or the origin cannot be reached.
    """
    require_onnx()
    step = "files"
    try:
        opened = _weights_only(artifact)
        known, probe = opened.provenance(), stored_probe(opened)
        detail = "version, hashes, sizes, counts and the zeros of every site agree"
        checks = [files_check(opened, detail)]
        source = origin_of(opened, origin=origin)
        step, absent = "origin", artifact.manifest.names("absent")
        for check in against_origin(opened, known, source, probe, absent):
            if check.name == "ungated" and absent:
                more = (
                    f"; {len(absent)} more tensors are not in the graph, which does not need them"
                )
                check = replace(check, detail=check.detail + more)
            checks.append(check)
        step = "logits"
        checks.append(_logits(artifact, probe))
    except (TicketError, ArtifactError) as error:
        return Verification(path=artifact.path, checks=(failed(step, str(error)),))
    return Verification(path=artifact.path, checks=tuple(checks))


def _weights_only(artifact: Artifact) -> Opened:
    """The weights in the file, in a module that cannot be called.

    Raises:
        ArtifactError: a file is missing or changed, or does not hold what the manifest says.
    """
    folder, manifest = artifact.path, artifact.manifest
    expect_probe(artifact)
    check_beside(artifact)
    check_weights(artifact)
    stored, weights = read_weights(folder), {}
    for name, entry in artifact.entries.items():
        tensor = stored.get(entry.initializer or "")
        if tensor is None or tensor.shape != entry.shape or tensor.dtype is not entry.dtype:
            raise manifest.damaged(f"its model does not hold {name} as it says")
        if entry.kept is not None and int(bits(tensor).count_nonzero()) != entry.nonzero:
            raise manifest.damaged(f"{name} does not have its recorded number of zeros")
        weights[name] = tensor
    for alias, name in manifest.object("ties").items():
        if name in weights:
            weights[alias] = weights[name]
    checkpoint = Checkpoint.of_module(_module_of(weights))
    return Opened(path=folder, checkpoint=checkpoint, masks=None, artifact=artifact)


def _module_of(weights: Mapping[str, Tensor]) -> nn.Module:
    """A module that holds tensors under their names and nothing else."""
    root = nn.Module()
    for name, tensor in weights.items():
        owner, (*path, leaf) = root, name.split(".")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    return root


def _logits(artifact: Artifact, probe: Probe | None) -> Check:
    """Compare what onnxruntime gives for the probe with its logits."""
    manifest = artifact.manifest
    share = manifest.object("onnx").get("tolerance")
    if not isinstance(share, float) or not 0.0 < share <= LARGEST_TOLERANCE or probe is None:
        raise manifest.damaged(f"it has no probe, or a tolerance of {str(share)[:40]}")
    examples = probe.shape[0] if probe.shape else 1
    worst = probe.difference(answer(open_session(artifact.path), probe.inputs))
    bound = share * probe.largest
    detail = (
        f"onnxruntime's differ by up to {worst:.2e} on {examples} probe inputs, within "
        f"{share:.0e} of the largest logit is {bound:.2e}"
    )
    return Check(name="logits", ok=worst <= bound, detail=detail)
