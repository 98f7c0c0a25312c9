"""What the sites of one stage multiply, in the masked network so far and in the dense one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from slt_compress.anatomy.states import evaluating, kept_buffers
from slt_compress.gates import Inputs
from slt_compress.gates.gating import Gates
from slt_compress.masks import Masks
from slt_compress.searching.block_passes import Stage, Stream
from slt_compress.searching.input_grams import from_matrix, matrix_shape, seen_grams
from slt_compress.searching.input_norms import seen_inputs, summed_dims
from slt_compress.sites.sites import Site, SitePlan

# Second moments of the inputs of sites, their norms, and why a site sees none.
Seen = tuple[Mapping[str, Tensor], Mapping[str, Inputs], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInputs:
    """The inputs of one stage after the other, in the masked network so far and in the dense one.

    `share` is that of the dense network; a stream that has no share does not run. `centred` sites
    see second moments around the mean.
    """

    gates: Gates
    share: float
    dense: Stream
    masked: Stream
    centred: frozenset[str] = frozenset()

    def seen(self, stage: Stage) -> Seen:
        """What the sites of a stage multiply: second moments, norms, and what cannot be seen.

        The dense stream is behind the stage then, the masked one in front of it.
        """
        parts: list[tuple[float, Seen]] = []
        if self.share > 0.0:
            with self.gates.opened():
                parts.append((self.share, self._part(stage, self.dense, self.dense.advance)))
        if self.share < 1.0:
            seen = self._part(stage, self.masked, self.masked.pass_through)
            parts.append((1.0 - self.share, seen))
        return parts[0][1] if len(parts) == 1 else _mixed(parts)

    def _part(self, stage: Stage, stream: Stream, run: Callable[[Stage], None]) -> Seen:
        plan = SitePlan(sites=stage.sites, skipped={})
        with (
            seen_grams(stream.module, stage.sites, self.centred) as grams,
            seen_inputs(stream.module, plan) as seen,
        ):
            run(stage)
        means = {name: gram.mean() for name, gram in grams.items()}
        moments = {name: mean for name, mean in means.items() if mean is not None}
        return moments, seen.inputs(), seen.unseen()

    def advance(self, stage: Stage, scores: Mapping[str, Tensor]) -> None:
        """Put the masks of these scores on a stage, and take the masked stream behind it."""
        self.put_on(stage, Masks({site.name: scores[site.name] >= 1.0 for site in stage.sites}))

    def skip(self, stage: Stage, masks: Masks) -> None:
        """Take both streams behind a stage whose masks are known."""
        if self.share > 0.0:
            with self.gates.opened():
                self.dense.advance(stage)
        self.put_on(stage, masks)

    def put_on(self, stage: Stage, masks: Masks) -> None:
        """Put masks on a stage, and take the masked stream behind it."""
        gains = {
            name: masks.density_of(name) ** -0.5
            for name in masks
            if self.gates.by_name[name].rescale and masks.density_of(name) > 0.0
        }
        self.gates.mask(masks, gains)
        if self.share < 1.0:
            self.masked.advance(stage)


def _mixed(parts: Sequence[tuple[float, Seen]]) -> Seen:
    """Means of second moments and of squared norms, by shares that add up to 1."""
    _, (first, inputs, unseen) = parts[0]
    moments = {
        name: sum((share * seen[0][name] for share, seen in parts), torch.zeros(()))
        for name in first
    }
    norms = {
        name: replace(seen, norms=_root(parts, name)) if seen.norms is not None else seen
        for name, seen in inputs.items()
    }
    return moments, norms, unseen


def _root(parts: Sequence[tuple[float, Seen]], name: str) -> Tensor:
    squares = torch.zeros((), dtype=torch.float64)
    for share, (_, inputs, _) in parts:
        norms = inputs[name].norms
        if norms is not None:
            squares = squares + share * norms.square()
    return squares.sqrt()


def norms_of(site: Site, grams: Tensor | None) -> Inputs:
    """Root mean square of every input, laid out as the weight."""
    if grams is None:
        return Inputs(dims=summed_dims(site), norms=None)
    norms = grams.cpu().diagonal(dim1=1, dim2=2).double().clamp_min(0.0).sqrt()
    rows = matrix_shape(site)[0] // len(norms)
    return Inputs(dims=summed_dims(site), norms=from_matrix(site, norms.repeat_interleave(rows, 0)))


@contextmanager
def calibrating(gates: Gates) -> Iterator[None]:
    """Eval mode with open gates; BatchNorm takes the statistics of each batch, and keeps its own.

    Running statistics are those of the dense network, and wrong behind a mask. Gates are open
    afterwards too.
    """
    with torch.no_grad(), evaluating(gates.module), kept_buffers(gates.module):
        norms = [child for child in gates.module.modules() if isinstance(child, _BatchNorm)]
        momenta = [(norm, norm.momentum) for norm in norms]
        try:
            for norm in norms:
                norm.momentum = 0.0
                norm.train()
            _open(gates)
            yield
        finally:
            _open(gates)
            for norm, momentum in momenta:
                norm.momentum = momentum


def _open(gates: Gates) -> None:
    for gate in gates.by_name.values():
        gate.mode = "open"
