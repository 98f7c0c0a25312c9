"""Compare methods with equal budgets and steps on the embedded digits, over two seeds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import slt_compress
from slt_compress.searching.recipes import parse_recipe

recipe = parse_recipe(
    {
        "init": "random",
        "dataset": "digits",
        "training": {"steps": 60, "batch_size": 64},
        "evaluation": {"controls": "none"},
    }
)
with tempfile.TemporaryDirectory() as folder:
    comparison = slt_compress.compare(
        "lenet-300-100",
        methods=["relaxed", "edge-popup", "random"],
        sparsities=[0.8],
        seeds=2,
        recipe=recipe,
        out=Path(folder) / "comparison",
    )

for row in comparison.summary():
    print(f"{row['method']:>12}: accuracy {row['mean']:.1%} ± {row['std']:.1%}")
