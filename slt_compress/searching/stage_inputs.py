"""What the sites of one stage multiply, in the masked network so far and in the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from slt_compress.gates import Inputs
from slt_compress.gates.gating import Gates
from slt_compress.searching.block_passes import Stage, Stream
from slt_compress.searching.input_grams import from_matrix, matrix_shape, seen_grams
from slt_compress.searching.input_norms import seen_inputs, summed_dims
from slt_compress.sites.sites import Site, SitePlan

# Second moments of the inputs of sites, their norms, and why a site sees none.
Seen = tuple[Mapping[str, Tensor], Mapping[str, Inputs], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInputs:
    """The inputs of one stage after the other, in the masked network so far and in the dense one.

    `share` is that of the dense network; a stream that has no share does not run.
    """

    gates: Gates
    share: float
    dense: Stream
    masked: Stream

    def seen(self, stage: Stage) -> Seen:
        """What the sites of a stage multiply: second moments, norms, and what cannot be seen.

        The dense stream is behind the stage then, the masked one in front of it.
        """
        found: list[tuple[float, Seen]] = []
        if self.share > 0.0:
            with self.gates.opened():
                found.append((self.share, _seen_in(stage, self.dense, self.dense.advance)))
        if self.share < 1.0:
            found.append((1.0 - self.share, _seen_in(stage, self.masked, self.masked.pass_through)))
        _, (moments, norms, missed) = found[0]
        if len(found) == 1:
            return moments, norms, missed
        mixed = {
            name: sum((share * seen[0][name] for share, seen in found), torch.zeros(()))
            for name in moments
        }
        own = {site.name: norms_of(site, mixed[site.name]) for site in stage.sites
               if site.name in mixed}  # fmt: skip
        return mixed, {**norms, **own}, missed

    def advance(self, stage: Stage, scores: Mapping[str, Tensor]) -> None:
        """Put masks on a stage, and take the masked stream behind it."""
        for site in stage.sites:
            gate = self.gates.by_name[site.name]
            gate.kept, gate.mode = scores[site.name] >= 1.0, "masked"
            density = float(gate.kept.double().mean())
            gate.gain = density**-0.5 if gate.rescale and density > 0.0 else 1.0
        if self.share < 1.0:
            self.masked.advance(stage)


def _seen_in(stage: Stage, stream: Stream, run: Callable[[Stage], None]) -> Seen:
    with seen_grams(stream.module, stage.sites) as grams:
        others = tuple(site for site in stage.sites if site.name not in grams)
        with seen_inputs(stream.module, SitePlan(sites=others, skipped={})) as seen:
            run(stage)
    means = {name: gram.mean() for name, gram in grams.items()}
    moments = {name: mean for name, mean in means.items() if mean is not None}
    norms = {site.name: norms_of(site, means[site.name]) for site in stage.sites
             if site.name in means}  # fmt: skip
    reason = "the forward pass does not call its module"
    blind = dict.fromkeys(means.keys() - moments.keys(), reason)
    return moments, {**norms, **seen.inputs()}, {**seen.unseen(), **blind}


def norms_of(site: Site, grams: Tensor | None) -> Inputs:
    """Root mean square of every input, laid out as the weight."""
    if grams is None:
        return Inputs(dims=summed_dims(site), norms=None)
    norms = grams.cpu().diagonal(dim1=1, dim2=2).double().clamp_min(0.0).sqrt()
    rows = matrix_shape(site)[0] // len(norms)
    return Inputs(dims=summed_dims(site), norms=from_matrix(site, norms.repeat_interleave(rows, 0)))


@contextmanager
def opened_afterwards(gates: Gates) -> Iterator[None]:
    """Open gates at the start of the block and at its end."""
    try:
        for gate in gates.by_name.values():
            gate.mode, gate.flip = "open", None
        yield
    finally:
        for gate in gates.by_name.values():
            gate.mode = "open"
