"""Prove that a shrunk model is the masked one: cut that again, and compare bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from slt_compress.artifacts.shrinking.cuts import Shrunk
from slt_compress.artifacts.shrinking.cutting import shrink, shrunken
from slt_compress.artifacts.shrinking.tracing import Forward
from slt_compress.errors import ArtifactError
from slt_compress.storage.bits import same_bits

# For a bias with constants moved in: sums in float64 may have another order elsewhere.
_FOLD_TOLERANCE = 1e-6


def prove(
    small: nn.Module,
    masked: nn.Module,
    shrunk: Shrunk,
    masks: Mapping[str, Tensor],
    forward: Forward | None,
) -> Iterator[tuple[str, bool, str]]:
    """Name, outcome and detail of every check of a shrunk model against the masked one.

    Args:
        small: the model to prove.
        masked: the whole model with the masks (and gains) applied.
        shrunk: what the artifact says was cut.
        masks: of the whole model.
        forward: the outputs on inputs that the models take; None where there are no inputs.
    """
    there, here = _state(shrunken(masked, shrunk)), _state(small)
    wrong = [name for name in there if name not in here or not same_bits(here[name], there[name])]
    sites = [name for name in wrong if name in masks]
    yield (
        "weights",
        not sites,
        f"{len(sites)} of {len(masks)} sites differ from the origin, first {sites[:1]}"
        if sites
        else "every weight is a bit-identical part of the masked origin",
    )
    others = [name for name in wrong if name not in masks and name not in shrunk.folds]
    yield (
        "ungated",
        not others,
        f"{len(others)} other tensors are not the origin's bits, first {others[:1]}"
        if others
        else "every other parameter and buffer is a part of the origin's, bit for bit",
    )
    off = [name for name in shrunk.folds if not _close(here.get(name), there.get(name))]
    yield (
        "folds",
        not off,
        f"{len(shrunk.folds) - len(off)} of {len(shrunk.folds)} biases that constants moved into "
        "are what the cut gives again" + "".join(f"; not {name}" for name in off[:1]),
    )
    yield "cut", *_cut_again(masked, shrunk, masks, forward)


def _cut_again(
    masked: nn.Module, shrunk: Shrunk, masks: Mapping[str, Tensor], forward: Forward | None
) -> tuple[bool, str]:
    """Whether the masks call for exactly this cut."""
    if forward is None:
        return True, "not tested: no inputs were stored"
    try:
        again = shrink(masked, forward, masks).shrunk
    except ArtifactError as error:
        return False, str(error)
    if again != shrunk:
        return False, "the masks of the origin call for another cut than the one that was made"
    return True, "all that was cut is constant or not read under the masks"


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _close(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dtype is not b.dtype or a.shape != b.shape:
        return False
    bound = max(_FOLD_TOLERANCE, torch.finfo(b.dtype).eps) * float(b.detach().abs().max())
    return float((a.detach().double() - b.detach().double()).abs().max()) <= bound
