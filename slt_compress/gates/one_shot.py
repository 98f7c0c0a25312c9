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

    Under a signed-constant init all weights of a layer have the same magnitude and would be kept
    in row-major order; a seeded jitter below the spacing of fp32 orders them instead. The scope
    of the budget decides between one ranking of all layers and one per layer.
    """

    name: ClassVar[str] = "magnitude"
    calibrated: ClassVar[bool] = False

    def score(self, weight: Tensor, key: int, inputs: Inputs | None = None) -> Tensor:
        """Absolute value in fp64; a factor below 1 + 2^-25 breaks ties.

        The added term breaks ties between zeros; it is far below the smallest fp32 number.
        """
        generator = torch.Generator().manual_seed(key)
        jitter = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
        return jittered(weight.detach().float().cpu().abs().double(), jitter)


def jittered(magnitude: Tensor, jitter: Tensor) -> Tensor:
    """The score of a magnitude (both fp64) with a jitter in [0, 1)."""
    return magnitude * (1.0 + jitter * 2.0**-25) + jitter * 2.0**-200


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Keep a uniformly random choice of weights: the control that every method has to beat."""

    name: ClassVar[str] = "random"
    calibrated: ClassVar[bool] = False

    def score(self, weight: Tensor, key: int, inputs: Inputs | None = None) -> Tensor:
        """Uniform numbers in [0, 1)."""
        return torch.rand(weight.shape, generator=torch.Generator().manual_seed(key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanda:
    """Keep the weights with the largest |W_ij| * ||X_j||_2 (Sun et al. 2023, eq. 1).

    "A Simple and Effective Pruning Approach for Large Language Models". Where this deviates from
    the paper:

    * the norm is divided by the square root of the number of rows, so that layers that see more
      rows can be compared with others;
    * all inputs are those of the dense network; the paper prunes block by block and uses the
      inputs that the pruned blocks before give;
    * a convolution has one norm per input channel and kernel offset;
    * a weight whose inputs cannot be seen is ranked by its magnitude, and a note says so.

    Attributes:
        per_row: compare weights within their output (the paper's choice): the score is the rank in
            the row, so that every budget keeps the same share of each row, give or take one
            weight. If false, products compete within the scope of the budget.
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
            # an input that is always 0 ranks by magnitude, far below the others
            score = score * inputs.norms.clamp_min(2.0**-100)
        return _rank_in_rows(score, inputs.dims, key) if self.per_row else score


def _rank_in_rows(score: Tensor, dims: tuple[int, ...], key: int) -> Tensor:
    """(rank + u) / length of each score within its row; u in [0, 1) is random, one for a row.

    u breaks ties between rows at random.
    """
    others = tuple(dim for dim in range(score.dim()) if dim not in dims)
    order = (*others, *dims)
    moved = score.permute(order)
    rows = moved.reshape(prod(score.shape[dim] for dim in others), -1)
    ranks = rows.argsort(dim=1, stable=True).argsort(dim=1).double()
    ranks += row_offsets(len(rows), key)
    back = sorted(range(score.dim()), key=order.__getitem__)
    return ranks.div_(rows.shape[1]).reshape(moved.shape).permute(back).contiguous()


def row_offsets(rows: int, key: int) -> Tensor:
    """What is added to the ranks of each row, [rows, 1] in [0, 1), fp64."""
    generator = torch.Generator().manual_seed(key)
    return torch.rand((rows, 1), generator=generator, dtype=torch.float64)
