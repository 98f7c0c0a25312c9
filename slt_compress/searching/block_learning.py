"""Learning one block: its gates follow the error of its output, against the dense network's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from slt_compress.evidence.losses import relative_error
from slt_compress.gates import Learned
from slt_compress.gates.base import sample_key
from slt_compress.gates.gating import Gates
from slt_compress.masks import Masks
from slt_compress.searching.block_passes import Stage, Stream, first_tensor
from slt_compress.searching.objectives import Answer, Objective, Outcome
from slt_compress.searching.selection import candidate
from slt_compress.searching.setup import SearchSetup
from slt_compress.searching.state import SearchState, Step
from slt_compress.searching.training import engine_for, walk
from slt_compress.sites.allocation import part_budget
from slt_compress.sites.sites import Site, SitePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLearning:
    """Learns the masks of one block after the other.

    Attributes:
        setup: of the whole search.
        method: its method.
        gates: on all sites, calibrating; they have no scores.
        dense, masked: this process's share of the batches, in the dense network and in the masked
            one so far.
        weighs: what the loss of each batch counts in this process.
        counts: how many units each site keeps.
        first: the first scores of a site.
        accelerator: of the search.
    """

    setup: SearchSetup
    method: Learned
    gates: Gates
    dense: Stream
    masked: Stream
    weighs: Sequence[float]
    counts: Mapping[str, int]
    first: Callable[[Site], Tensor]
    accelerator: Accelerator

    def skip(self, stage: Stage) -> None:
        """Take the dense stream behind a stage whose masks are known."""
        with self.gates.opened():
            self.dense.advance(stage)

    def masks(self, stage: Stage, on_step: Callable[[Step], None]) -> Masks:
        """The masks of the next stage; the dense stream is behind it then.

        A stage that gives no floating-point output keeps what its first scores say.

        Raises:
            SltError: the loss is not finite.
        """
        with self.gates.opened():
            targets = self.dense.outputs_of(stage)
        live = [site for site in stage.sites if self.counts[site.name]]
        scores = {site.name: self.first(site) for site in live}
        part = replace(
            self.setup,
            plan=SitePlan(sites=tuple(live), skipped={}),
            budget=part_budget(self.setup.budget, self.counts, live),
            training=self._training(stage),
        )
        target = first_tensor(targets[0]) if live else None
        if target is not None and target.is_floating_point():
            scores = self._learned(part, stage, scores, targets, on_step)
        masks = part.binarize(scores) if live else Masks({})
        empty = {site.name: torch.zeros(site.shape, dtype=torch.bool) for site in stage.sites
                 if site not in live}  # fmt: skip
        return Masks({**masks, **empty}, masks.flips)

    def _training(self, stage: Stage) -> Any:
        """The settings of one block: noise of its own, and no choice by a held-out slice."""
        training = self.setup.training
        return replace(training, seed=sample_key(training.seed, f"block:{stage.module}"))

    def _learned(
        self,
        part: SearchSetup,
        stage: Stage,
        scores: Mapping[str, Tensor],
        targets: Sequence[Any],
        on_step: Callable[[Step], None],
    ) -> dict[str, Tensor]:
        device = next(part.module.parameters()).device

        def loss(module: nn.Module, index: int, _: Answer | None) -> Outcome:
            output, target = module(index), tensor_of(targets[index], stage)
            return Outcome(relative_error(output, target.to(output.device)) * self.weighs[index])

        batches = BlockBatches(count=len(self.weighs), seed=part.training.seed)
        with _scored(self.gates, self.method, scores, device) as gates:
            loop = replace(
                part.loop(gates, self.method),
                objective=Objective(loss),  # type: ignore[arg-type]
                batches=batches,
                called=_Pass(self.masked, stage, gates.scores),
            )
            state: SearchState | None = None
            with torch.enable_grad(), engine_for(loop, self.accelerator) as engine:
                for state in walk(engine):
                    on_step(state.latest)
            self.accelerator.free_memory()  # which would hold the scores of every block
            return candidate(loop.first_state() if state is None else state)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockBatches:
    """The numbers of the batches, each epoch in an order of its own."""

    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def epoch(self, index: int) -> Iterator[int]:
        """The numbers in seeded order."""
        generator = torch.Generator().manual_seed(sample_key(self.seed, f"epoch:{index}"))
        return iter(torch.randperm(self.count, generator=generator).tolist())


class _Pass(nn.Module):
    """What gives the output of a stage for the number of a batch; it has the scores alone."""

    def __init__(self, stream: Stream, stage: Stage, scores: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.scores = nn.ParameterList(scores.values())
        self._of = (stream, stage)  # no submodule: it is neither moved nor wrapped

    def forward(self, index: int) -> Tensor:
        """The first output of the stage in the masked network, with the gates of this step."""
        stream, stage = self._of
        return tensor_of(stream.output(stage, index), stage)


def tensor_of(output: Any, stage: Stage) -> Tensor:
    """The first tensor that a stage gave.

    Raises:
        TypeError: it gave none, where it gave one for the batch before.
    """
    tensor = first_tensor(output)
    if tensor is None:
        raise TypeError(f"{stage.module} gave {type(output).__name__} where a tensor was expected")
    return tensor


@contextmanager
def _scored(
    gates: Gates, method: Learned, scores: Mapping[str, Tensor], device: torch.device
) -> Iterator[Gates]:
    """The gates of some sites with scores, for as long as the block lasts."""
    chosen = {name: gates.by_name[name] for name in scores}
    for name, gate in chosen.items():
        gate.method, gate.score = method, nn.Parameter(scores[name].to(device))
    try:
        yield replace(gates, by_name=chosen)
    finally:
        for gate in chosen.values():
            gate.method = gate.score = gate.sample = None
            gate.mode = "open"
