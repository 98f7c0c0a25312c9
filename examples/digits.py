"""A winning ticket in a random network: search, report, export, load, verify."""

from __future__ import annotations

import tempfile
from pathlib import Path

import slt_compress
from slt_compress.searching.recipes import parse_recipe

recipe = parse_recipe(
    {
        "target_sparsity": 0.8,
        "init": "random",
        "dataset": "digits",
        "training": {"steps": 200, "batch_size": 64},
    }
)
with tempfile.TemporaryDirectory() as folder:
    ticket = slt_compress.search("lenet-300-100", recipe=recipe, out=Path(folder) / "ticket")
    report = slt_compress.report(ticket.path)
    artifact = slt_compress.export(ticket.path, format="sparse-csr", out=Path(folder) / "sparse")
    model = slt_compress.load(artifact.path)
    proof = slt_compress.verify(artifact.path)

print(
    f"{report.sparsity['achieved']:.1%} sparse, accuracy {report.metrics['hard']['accuracy']:.1%}"
)
print(f"{artifact.nbytes:,} bytes instead of {artifact.dense_nbytes:,}")
print("verified" if proof.ok else "NOT verified", "-", type(model).__name__)
