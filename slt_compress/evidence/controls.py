"""Controls: the masks that a learned mask is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from slt_compress.gates import Magnitude
from slt_compress.gates.base import sample_key
from slt_compress.gates.streamed import MagnitudeScores
from slt_compress.masks import Masks, packed
from slt_compress.sites.keys import keys_of
from slt_compress.sites.layouts import Elementwise, Grouped, Layout, kept_units, norms
from slt_compress.sites.ranking import Ranking
from slt_compress.storage.freeing import releasing

CONTROLS = ("random", "shuffled", "magnitude")


def control_masks(
    masks: Masks,
    weights: Mapping[str, Tensor],
    seed: int,
    layouts: Mapping[str, Layout],
    kinds: Sequence[str] = CONTROLS,
) -> Iterator[tuple[str, Masks]]:
    """Masks in the same pattern that keep the same number of units in each layer, one by one.

    `random` is uniform within each layer. `shuffled` permutes the mask (its weights, groups of N:M
    or blocks, with their flips) within each output row, the first dimension, so that row counts
    stay. `magnitude` keeps the units of the largest norm, with ties in a seeded order.
    """

    def permuted(kind: str, name: str, mask: Tensor) -> Tensor:
        layout = layouts[name]
        units = kept_units(layout, mask)
        generator = torch.Generator().manual_seed(sample_key(seed, f"{kind}:{name}"))
        return layout.expand(layout.permute(units, generator, by_row=kind == "shuffled"))

    def every(kind: str, chosen: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return packed(
            releasing((name, permuted(kind, name, mask)) for name, mask in chosen.items())
        )

    def largest(name: str, mask: Tensor) -> Tensor:
        return _largest(mask, weights[name], layouts[name], sample_key(seed, f"magnitude:{name}"))

    for kind in kinds:
        if kind == "magnitude":
            kept = packed(releasing((name, largest(name, mask)) for name, mask in masks.items()))
            yield kind, Masks.made(kept, {})
        else:
            flips = every(kind, masks.flips) if kind == "shuffled" else {}
            yield kind, Masks.made(every(kind, masks), flips)


def _largest(mask: Tensor, weight: Tensor, layout: Layout, key: int) -> Tensor:
    """The units of the largest norm, as many of them as the mask keeps."""
    if isinstance(layout, Elementwise):
        scores: Mapping[str, Tensor] = MagnitudeScores(weights={"": weight}, keys={"": key})
    else:
        competing = layout.centre(Magnitude().score(norms(layout, weight), key))
        if isinstance(layout, Grouped):
            return layout.expand(competing > 0.0)
        scores = {"": competing}
    count = int(kept_units(layout, mask).count_nonzero())
    ((_, kept),) = Ranking(keys_of(scores)).masks([""], count)
    return layout.expand(kept.reshape(layout.grid(weight.shape)))
