"""Controls: the masks that a learned mask is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from slt_compress.gates import Magnitude
from slt_compress.gates.base import sample_key
from slt_compress.masks import Masks
from slt_compress.sites.keys import keys_of
from slt_compress.sites.layouts import Grouped, Layout, kept_units, norms
from slt_compress.sites.ranking import Ranking

Masked = dict[str, Tensor]


def control_masks(
    masks: Masks, weights: Mapping[str, Tensor], seed: int, layouts: Mapping[str, Layout]
) -> dict[str, Masks]:
    """Masks in the same pattern that keep the same number of units in each layer.

    `random` is uniform within each layer. `shuffled` permutes the mask (its weights, groups of N:M
    or blocks, with their flips) within each output row, the first dimension, so that row counts
    stay. `magnitude` keeps the units of the largest norm, with ties in a seeded order.
    """

    def permuted(kind: str, name: str, units: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(sample_key(seed, f"{kind}:{name}"))
        return layouts[name].permute(units, generator, by_row=kind == "shuffled")

    def largest(name: str, units: Tensor) -> Tensor:
        layout, key = layouts[name], sample_key(seed, f"magnitude:{name}")
        score = Magnitude().score(norms(layout, weights[name]), key)
        competing = layout.centre(score)
        if isinstance(layout, Grouped):
            return competing > 0.0
        ranking = Ranking(keys_of({name: competing}))
        (_, mask), *_ = ranking.masks([name], int(units.count_nonzero()))
        return mask.reshape(units.shape)

    def control(choose: Callable[[str, Tensor], Tensor], chosen: Mapping[str, Tensor]) -> Masked:
        masked: dict[str, Tensor] = {}
        for name, mask in chosen.items():
            masked[name] = layouts[name].expand(choose(name, kept_units(layouts[name], mask)))
        return masked

    random, shuffled = partial(permuted, "random"), partial(permuted, "shuffled")
    return {
        "random": Masks(control(random, masks)),
        "shuffled": Masks(control(shuffled, masks), control(shuffled, masks.flips)),
        "magnitude": Masks(control(largest, masks)),
    }
