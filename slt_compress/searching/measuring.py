"""Metrics of a folder on a data set."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from slt_compress.data import default_data, open_data, open_default, prepare
from slt_compress.runtime.opening import as_origin, open_path, origin_of
from slt_compress.searching.recipes import Recipe
from slt_compress.searching.workloads import checkpoint_workload


def measure_path(
    folder: Path, recipe: Recipe, data: str | None, *, origin: str | Path | None
) -> dict[str, Any]:
    """Metrics of a ticket or exported folder: `{metrics, examples}`; see `slt_compress.evaluate`.

    Raises:
        SltError: the folder, its origin or the data cannot be used.
    """
    opened = open_path(folder, origin=origin)
    checkpoint = opened.checkpoint
    spec = data or recipe.dataset
    if spec is None:
        raw = open_default(default_data(checkpoint), checkpoint, recipe.data)
    else:
        raw = open_data(spec, recipe.data)
    prepared = prepare(
        raw, checkpoint, batch_size=recipe.training.batch_size,
        seed=recipe.training.seed, limit=recipe.evaluation.limit,
    )  # fmt: skip
    workload = checkpoint_workload(checkpoint, prepared, replace(recipe.objective, name="distill"))
    reference = None
    if not prepared.labels_match:
        reference = partial(as_origin, opened, origin_of(opened, origin=origin))
    metrics = workload.measure(opened.module, prepared.test, reference=reference)
    return {"metrics": metrics, "examples": prepared.splits["test"]}
