"""Fold checks: prove that a folded file holds the model that was read from it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from slt_compress.anatomy.copies import copy_of
from slt_compress.artifacts.folding import fold_, parse_folds
from slt_compress.artifacts.shrinking import tolerance_of
from slt_compress.evidence.checks import Check
from slt_compress.runtime.opening import Opened
from slt_compress.storage.probe import Probe
from slt_compress.tickets.provenance import Provenance


def folds_held(opened: Opened, known: Provenance, probe: Probe | None) -> Iterator[Check]:
    """Whether every fold is the recorded order, and the folded model gives the same logits.

    The opened module is in its own order; sums in another order are rounded differently. There is
    no check where nothing is folded.
    """
    folds = {} if opened.artifact is None else parse_folds(opened.artifact.manifest)
    if not folds:
        return
    odd = [name for name, fold in folds.items() if fold.order != known.orders.get(name)]
    if odd or probe is None:
        why = f"that of {odd[0]} is not its recorded order" if odd else "there is no probe"
        yield Check(name="folds", ok=False, detail=f"{len(folds)} folds, but {why}")
        return
    module = copy_of(opened.module)
    fold_(module, folds)
    with torch.inference_mode():
        logits = opened.checkpoint.forward(module, probe.inputs)
    worst, largest = probe.difference(logits), probe.largest
    yield Check(
        name="folds", ok=worst <= tolerance_of(module) * largest,
        detail=f"{len(folds)} orders of inputs are folded into the layers before; as it lies in "
        f"the file, the model differs by up to {worst:.2e} of {largest:.2e}",
    )  # fmt: skip
