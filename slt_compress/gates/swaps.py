"""Swaps: exchange kept for removed weights until the layer's output error falls no further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.gates.base import Inputs
from slt_compress.gates.exchanges import Bounds, blend, exchange_in_rows
from slt_compress.gates.one_shot import Wanda
from slt_compress.gates.row_exchanges import exchange_across_rows

Exchange = Literal["row", "layer", "global"]
ErrorOf = Literal["output", "loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Swaps:
    """Start from Wanda's mask and make the best exchanges of a kept for a removed weight.

    After "SparseSwaps" (Zimmer, Roux, Wagner, Hendrych, Pokutta; arXiv 2512.10922). For the inputs
    X [N, C] of a layer and G = X'X / N, a row w with mask m misses d = (1 - m) w of its weights
    and has the error d G d'. An exchange of a removed weight p and a kept one u changes it by

        -2 w_p c_p + w_p^2 G_pp + 2 w_u c_u + w_u^2 G_uu - 2 w_p w_u G_pu,   c = G d.

    No weight moves: only the mask does. What is ours:

    * lambda, the `diagonal`: G is replaced by (1 - lambda) G + lambda diag(G); with 1 the mask is
      Wanda's exactly, with 0 the error is that of the layer's output.
    * exchanges across rows: rows do not interact, so the last term drops. Rows of one layer, or
      of all, can be weighed by the energy of the loss gradient at their outputs.
    * a layer sees the inputs that the masked layers before it give, mixed with those of the dense
      network as `dense_inputs` says.

    Memory beside the network: the batches and the outputs of one block for them (two with mixed
    inputs), 4 C^2 bytes for each site of one block, a score for each weight, and some 3 * 4096 *
    pool^2 numbers while a layer is worked on. The loss gradient, where it is wanted, needs the
    activations of one batch.

    Attributes:
        diagonal: lambda, in [0, 1]; `auto` tries several and takes that of the lowest loss on the
            held-out slice, each with a pass through the network.
        exchange: `row` keeps the count of every row of Wanda's mask, `layer` that of every layer.
            `global` gives all rows of all layers their counts by one ranking of w^2 G_jj times
            the energy of the loss gradient at the row's output, within the budget's scope and
            floor; then as `layer`.
        error: what counts where rows are compared: `output`, the error of the layer's output, or
            `loss`, that error times the energy of the loss gradient. `global` implies `loss`.
        dense_inputs: share of the dense network's inputs in G, in [0, 1]; at 1 no layer sees
            what the masks before it change.
        pool: candidates a side that are compared in all pairs at a time; 0 compares all.
        batches: training batches that are seen.
    """

    diagonal: float | Literal["auto"] = 0.0
    exchange: Exchange = "row"
    error: ErrorOf = "output"
    dense_inputs: float = 0.0
    pool: int = 32
    batches: int = 16
    name: ClassVar[str] = "swaps"
    calibrated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.dense_inputs <= 1.0:
            raise RecipeError(f"method.dense_inputs is a share in [0, 1], not {self.dense_inputs}")
        given = -1.0 if isinstance(self.diagonal, str) else self.diagonal
        if self.diagonal != "auto" and not 0.0 <= given <= 1.0:
            raise RecipeError(f"method.diagonal is auto or a share in [0, 1], not {self.diagonal}")
        if self.pool < 0:
            raise RecipeError(f"method.pool is a number of candidates or 0, not {self.pool}")
        if self.batches < 1:
            raise RecipeError(f"method.batches must be above 0, not {self.batches}")
        if self.exchange not in ("row", "layer", "global"):
            raise RecipeError(f"method.exchange is row, layer or global, not {self.exchange!r}")
        if self.error not in ("output", "loss"):
            raise RecipeError(f"method.error is output or loss, not {self.error!r}")

    @property
    def weighs(self) -> bool:
        """Whether the energy of the loss gradient is wanted."""
        return self.exchange == "global" or (self.error == "loss" and self.exchange == "layer")

    def score(self, weight: Tensor, key: int, inputs: Inputs | None = None) -> Tensor:
        """What the exchanges start from: Wanda's score, ranked within each row; fp64."""
        return Wanda().score(weight, key, inputs)

    def improve(self, weight: Tensor, mask: Tensor, gram: Tensor, bounds: Bounds) -> Tensor:
        """The mask after the exchanges.

        Args:
            weight: [R, C]; all is computed in its dtype.
            mask: [R, C], bool, the start.
            gram: [C, C], the second moment of the inputs, before `diagonal` is applied.
            bounds: which exchanges are allowed.
        """
        if self.diagonal == "auto":
            raise RecipeError("method.diagonal is auto where a number is needed")
        if self.diagonal == 1.0 and self.exchange == "row":
            return mask
        blended = blend(gram, self.diagonal)
        pool = self.pool or weight.shape[1]
        mask = exchange_in_rows(weight, mask, blended, bounds, pool=pool)
        if self.exchange != "row" and not bounds.group:
            mask = exchange_across_rows(weight, mask, blended, bounds, pool=pool)
        return mask
