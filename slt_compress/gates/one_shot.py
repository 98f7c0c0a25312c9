"""One-shot methods: scores that are read off the weights and their inputs, without training."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from slt_compress.gates.base import Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Magnitude:
    """Keep the weights of the largest absolute value (Janowsky 1989; Han et al. 2015).

    Weights of equal magnitude, which is all of a layer under a signed-constant init, would be
    kept in row-major order; a seeded jitter below the spacing of fp32 orders them instead.
    The scope of the budget decides between one ranking of all layers and one in each.
    """

    name: ClassVar[str] = "magnitude"
    calibrated: ClassVar[bool] = False

    def score(self, weight: Tensor, key: int, inputs: Inputs | None = None) -> Tensor:
        """Absolute value in fp64; equal ones are told apart by a factor below 1 + 2^-25.

        The term behind the factor tells zeros apart; it is far below the least fp32 number.
        """
        generator = torch.Generator().manual_seed(key)
        jitter = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        magnitude = weight.detach().float().cpu().abs().double()
        return magnitude * (1.0 + jitter * 2.0**-25) + jitter * 2.0**-200


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Keep a uniformly random choice of weights: the control that any method has to beat."""

    name: ClassVar[str] = "random"
    calibrated: ClassVar[bool] = False

    def score(self, weight: Tensor, key: int, inputs: Inputs | None = None) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanda:
    """Keep what weighs most on the activations: |W_ij| * ||X_j||_2 (Sun et al. 2023, eq. 1).

    "A Simple and Effective Pruning Approach for Large Language Models". Where this deviates from
    the paper: the norm is divided by the root of the number of rows, so that layers that see more
    rows compare with others; the inputs are those of the dense network everywhere, where the paper
    goes from block to block and sees what the blocks before were pruned to; a convolution has a
    norm for each input channel and offset of its kernel; a weight whose inputs cannot be seen is
    ranked by its magnitude, and a note says so.

    Attributes:
        per_row: compare weights within their output (the paper's choice): the score is the rank in
            the row, so that any budget leaves each row of all layers the same share, give or take
            one weight. Without, products are compared over what the budget's scope says.
    """

    per_row: bool = True
    name: ClassVar[str] = "wanda"
    calibrated: ClassVar[bool] = True

    def score(self, weight: Tensor, key: int, inputs: Inputs | None = None) -> Tensor:
        """The product, or its rank within the row in (0, 1); fp64."""
        score = Magnitude().score(weight, key)
        if inputs is None:
            return score
        if inputs.norms is not None:
            # an input that is always 0 leaves the order to the magnitudes, far below the others
            score = score * inputs.norms.clamp_min(2.0**-100)
        return _rank_in_rows(score, inputs.dims, key) if self.per_row else score


def _rank_in_rows(score: Tensor, dims: tuple[int, ...], key: int) -> Tensor:
    """(rank + u) / length of each score within its row; u in [0, 1) is random, one for a row.

    It tells apart what has the same rank in different rows, in no order of them.
    """
    others = tuple(dim for dim in range(score.dim()) if dim not in dims)
    order = (*others, *dims)
    moved = score.permute(order)
    rows = moved.reshape(prod(score.shape[dim] for dim in others), -1)
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1).double()
    generator = torch.Generator().manual_seed(key)
    ranks += torch.rand((len(rows), 1), generator=generator, dtype=torch.float64)
    back = sorted(range(score.dim()), key=order.__getitem__)
    return ranks.div_(rows.shape[1]).reshape(moved.shape).permute(back).contiguous()
