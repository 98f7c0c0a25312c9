"""What `swaps` gives a search: scores of its own, or the polish at the end of a learned one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.gates import Swaps
from slt_compress.gates.gating import gated
from slt_compress.searching.conclusion import Measuring
from slt_compress.searching.input_grams import as_matrix, from_matrix
from slt_compress.searching.setup import SearchSetup
from slt_compress.searching.swapping import Swapping
from slt_compress.sites.sites import Site

Scores = dict[str, Tensor]
# What `diagonal: auto` tries: all of the error's correlations, most, half, and none (Wanda).
DIAGONALS = (0.0, 0.1, 0.5, 1.0)


def swapped_scores(
    setup: SearchSetup, method: Swaps, weights: Mapping[str, Tensor]
) -> tuple[Scores, tuple[str, ...]]:
    """The scores of a search by `method`; notes say which lambda was chosen, and why.

    `diagonal: auto` takes the mask of the lowest loss on the held-out slice.
    """
    with gated(setup.module, setup.plan, rescale=setup.rescales) as gates:
        if method.diagonal != "auto":
            return swapping_of(setup, method, weights).scores(gates)
        measuring = Measuring.of(setup, gates)
        losses: dict[float, float] = {}
        best: tuple[Scores, tuple[str, ...]] = {}, ()
        for diagonal in DIAGONALS:
            tried = swapping_of(setup, replace(method, diagonal=diagonal), weights).scores(gates)
            losses[diagonal] = measuring.held_out_loss(tried[0])
            if losses[diagonal] == min(losses.values()):
                best = tried
        listed = ", ".join(f"{loss:.5g} with {value:g}" for value, loss in losses.items())
        chosen = min(losses, key=losses.__getitem__)
        note = f"swaps takes diagonal={chosen:g} by the loss on the held-out slice: {listed}"
        return best[0], (*best[1], note)


def polished(
    measuring: Measuring, scores: Scores, weights: Mapping[str, Tensor]
) -> tuple[Scores, tuple[str, ...]]:
    """The scores after exchanges that start from their mask, if its held-out loss is no larger."""
    setup = measuring.setup
    start, method = setup.binarize(scores), Swaps(diagonal=0.0, exchange="row")
    swapped, notes = swapping_of(setup, method, weights).scores(measuring.gates, start)
    after = {
        site.name: _exchanged(site, scores[site.name], start[site.name], swapped[site.name] >= 1.0)
        for site in setup.plan.sites
    }
    old, new = measuring.held_out_loss(scores), measuring.held_out_loss(after)
    taken = new <= old
    what = "is taken" if taken else "is not taken"
    note = f"training.polish {what}: held-out loss {new:.5g} after it, {old:.5g} before"
    return (after if taken else scores), (*notes, note)


def _exchanged(site: Site, scores: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The scores, where those of weights that come back and of those that go change places.

    In order, so that either is in the same row and in the same group of N:M.
    """
    before, m, n = (as_matrix(site, tensor) for tensor in (scores, old, new))
    after = before.clone()
    after[n & ~m], after[m & ~n] = before[m & ~n], before[n & ~m]
    return from_matrix(site, after)


def check_polish(setup: SearchSetup) -> None:
    """Refuse to polish what single exchanges cannot keep.

    Raises:
        RecipeError: the gates are signed, or the pattern has units larger than a weight.
    """
    if setup.learned is not None and setup.learned.signed:
        raise RecipeError("training.polish exchanges kept weights and knows no signs: "
                          "leave out training.polish or method.signed")  # fmt: skip
    if setup.budget.shape.counts_units:
        raise RecipeError(
            f"training.polish exchanges single weights, and a unit of the pattern "
            f"{setup.budget.pattern} is larger: leave it out"
        )


def swapping_of(setup: SearchSetup, method: Swaps, weights: Mapping[str, Tensor]) -> Swapping:
    """The exchanges of a search."""
    return Swapping(
        module=setup.module, plan=setup.plan, method=method, budget=setup.budget, weights=weights,
        batches=setup.workload.train, forward=setup.workload.forward, seed=setup.training.seed,
        tell=setup.tell,
    )  # fmt: skip
