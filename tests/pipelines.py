"""The whole path from a search to its exports, short, and what must hold of every ticket."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

import slt_compress
from slt_compress import Recipe
from slt_compress.artifacts.formats import FORMATS
from slt_compress.checkpoints.tasks import forward_of
from slt_compress.searching.recipes import parse_recipe
from slt_compress.tickets import read_probe

RECIPE = parse_recipe({"target_sparsity": 0.8, "method": "magnitude", "training": {"steps": 1,
                       "batch_size": 4}, "evaluation": {"limit": 4}})  # fmt: skip


REPORT = {
    "source", "sparsity", "metrics", "controls", "layers", "skipped", "sizes", "warnings",
    "expectations", "recipe", "search",
}  # fmt: skip


def short(**changes) -> Recipe:
    content = {"target_sparsity": 0.7, "training": {"steps": 3, "batch_size": 4, "selections": 2}}
    return parse_recipe({**content, **changes})


def logits_of(path, module, task, family):
    probe = read_probe(path)
    with torch.inference_mode():
        return forward_of(family, task)(module, probe.inputs), probe.logits


def check_whole_path(ticket, tmp_path, *, verify_model=None):
    """Everything that must hold of any ticket; gives the report."""
    report = slt_compress.report(ticket.path)
    content = json.loads(json.dumps(report.to_dict()))
    assert set(content) == REPORT
    figures = content["sparsity"]
    gated = sum(layer["total"] for layer in content["layers"])
    assert figures["gated"] == gated
    assert (
        figures["kept"] == sum(layer["kept"] for layer in content["layers"]) == round(0.3 * gated)
    )
    assert set(content["controls"]) == {"random", "magnitude", "shuffled"}
    assert set(content["metrics"]) == {"dense", "hard", "soft"}
    assert set(content["sizes"]) == set(FORMATS)
    family, task = ticket.origin["family"], ticket.origin["task"]
    found, wanted = logits_of(
        ticket.path, slt_compress.load(ticket.path, model=verify_model), task, family
    )
    assert torch.equal(found, wanted)
    assert slt_compress.verify(ticket.path, model=verify_model, in_process=True).ok
    for format in FORMATS:
        out = tmp_path / format
        artifact = slt_compress.export(ticket.path, format=format, out=out, model=verify_model)
        assert artifact.nbytes == sum(
            f.stat().st_size for f in out.glob("*.safetensors") if f.name != "probe.safetensors"
        )
        again = slt_compress.load(out, model=verify_model)
        assert not again.training
        assert torch.equal(logits_of(ticket.path, again, task, family)[0], wanted)
        checks = slt_compress.verify(out, model=verify_model, in_process=True)
        assert checks.ok, checks
        assert {"files", "count", "origin", "pattern", "weights", "ungated", "logits"} == {
            check.name for check in checks.checks
        }
        exported = slt_compress.report(out)
        assert replace(exported, warnings=report.warnings) == report
        assert set(exported.warnings) >= set(report.warnings)
        assert (out / "README.md").read_text().startswith("---\n")
    return report
