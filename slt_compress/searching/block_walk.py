"""The way through the blocks of a search: the masks of one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from slt_compress.anatomy.residence import Residence
from slt_compress.anatomy.states import evaluating
from slt_compress.checkpoints.tasks import to_device
from slt_compress.gates import Inputs, Learned, Magnitude, Swaps
from slt_compress.gates.gating import Gates
from slt_compress.gates.streamed import MadeScores
from slt_compress.masks import Masks
from slt_compress.searching.accelerators import shard_of
from slt_compress.searching.block_learning import BlockLearning
from slt_compress.searching.block_passes import Stream, gathered, stages_of
from slt_compress.searching.block_progress import Saver, heard_in_block, masks_of, with_block
from slt_compress.searching.events import Part, Watched
from slt_compress.searching.first_scores import first_score, ranking_of, ranks_of
from slt_compress.searching.input_norms import seen_inputs, unseen_note
from slt_compress.searching.interrupting import stopping_between_steps
from slt_compress.searching.resuming import Progress, SearchFolder
from slt_compress.searching.search import OnStep
from slt_compress.searching.setup import SearchSetup
from slt_compress.searching.stage_inputs import calibrating
from slt_compress.searching.state import Step
from slt_compress.searching.swapping import Swapping
from slt_compress.sites.allocation import even_counts, ranked_counts
from slt_compress.sites.budget import binarize
from slt_compress.sites.sites import Site
from slt_compress.storage.spool import Spool

# Training batches that the blocks see.
BATCHES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way through the blocks of one search."""

    setup: SearchSetup
    residence: Residence
    gates: Gates
    weights: Mapping[str, Tensor]
    accelerator: Accelerator
    scratch: Path

    def walk(
        self, saved: Progress, on_step: OnStep, folder: SearchFolder | None
    ) -> tuple[Progress, Masks]:
        """The masks of all sites; progress is saved after a block where that is due."""
        setup, method = self.setup, self.setup.method
        setup.tell(Part("search"))
        if isinstance(method, Swaps | Learned):
            with calibrating(self.gates), stopping_between_steps() as steps:
                saver = Saver(folder=folder, steps=steps)

                def told(step: Step) -> None:
                    setup.tell(step)
                    on_step(step)
                    saver.stop_if_asked()

                if isinstance(method, Swaps):
                    progress = self._swapped(method, saved, saver)
                else:
                    progress = self._learned(method, saved, saver, told)
            if folder is not None:
                folder.save(progress)
            return progress, masks_of(progress, setup.plan.sites)
        inputs, notes = self._inputs()
        scores = MadeScores(setup.plan.layouts, partial(self._ranked, inputs))
        return replace(saved, notes=notes), binarize(scores, setup.budget, setup.plan.layouts)

    def _learned(
        self, method: Learned, saved: Progress, saver: Saver, told: Callable[[Step], None]
    ) -> Progress:
        setup = self.setup
        inputs, notes = self._inputs()
        batches, weighs = self._batches(shared=False)
        learning = BlockLearning(
            setup=self._for_blocks(), method=method, gates=self.gates,
            dense=self._stream(batches), masked=self._stream(batches), weighs=weighs,
            counts=self._counts(inputs), first=partial(self._first, method, inputs),
            accelerator=self.accelerator,
        )  # fmt: skip
        stages = stages_of(
            setup.module, setup.plan, partial(setup.workload.forward, setup.module), batches[0]
        )
        progress = replace(saved, notes=notes)
        for number, stage in enumerate(stages):
            with saver.kept(progress), self.residence.held(stage.module):
                masks = masks_of(progress, stage.sites)
                if masks:
                    learning.skip(stage)
                else:
                    steps: list[Step] = []
                    heard = partial(heard_in_block, steps, told, number, len(stages))
                    masks = learning.masks(stage, heard)
                    progress = with_block(progress, masks, stage, steps)
                self.gates.mask(masks, setup.gains(masks))
                learning.masked.advance(stage)
            saver.after_block(progress)
        return progress

    def _swapped(self, method: Swaps, saved: Progress, saver: Saver) -> Progress:
        setup = self.setup
        batches, _ = self._batches(shared=True, limit=method.batches)
        swapping = Swapping(
            module=setup.module, plan=setup.plan, method=method, budget=setup.budget,
            weights=self.weights, batches=(), forward=setup.workload.forward,
            seed=setup.training.seed,
        )  # fmt: skip
        walk, progress = swapping.walk(self.gates, batches, store=self._store), saved
        for stage in Watched(walk.stages, setup.tell):
            with saver.kept(progress), self.residence.held(stage.module):
                masks = masks_of(progress, stage.sites)
                if masks:
                    walk.inputs.skip(stage, masks)
                else:
                    scores, unseen = walk.scores_of(stage)
                    masks = Masks({name: score >= 1.0 for name, score in scores.items()})
                    progress = with_block(progress, masks, stage, ())
                    if unseen:
                        notes = (*progress.notes, unseen_note(method.name, unseen))
                        progress = replace(progress, notes=notes)
                    walk.inputs.put_on(stage, masks)
            saver.after_block(progress)
        return progress

    def _for_blocks(self) -> SearchSetup:
        """The setup with the settings of a block's training: nothing is held out or run again."""
        training = replace(
            self.setup.training, selections=0, patience=None, accumulate=1, recompute="none"
        )
        return replace(self.setup, training=training)

    def _batches(self, *, shared: bool, limit: int = BATCHES) -> tuple[Sequence[Any], list[float]]:
        """The training batches, in files; of several processes each has its share or all of them.

        The second value is what each counts in the mean over the processes.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        every = gathered(self.setup.workload.train.epoch(0), limit)
        shards = [shard_of(batch, 0 if shared else rank, 1 if shared else world) for batch in every]
        device = self.accelerator.device
        files = self._store(to_device(shard, device) for shard, _ in shards)
        return _OnDevice(files, device), [weight for _, weight in shards]

    def _store(self, values: Any) -> Sequence[Any]:
        return _OnDevice(Spool(self.scratch, values), self.accelerator.device)

    def _stream(self, batches: Sequence[Any]) -> Stream:
        run = partial(self.setup.workload.forward, self.setup.module)
        return Stream(module=self.setup.module, run=run, batches=batches, store=self._store)

    def _inputs(self) -> tuple[Mapping[str, Inputs], tuple[str, ...]]:
        """The inputs of all sites in the dense network, if the first scores need them."""
        setup = self.setup
        ranking = ranking_of(setup.method, random_init=setup.random_init)
        if ranking is None or not ranking.calibrated:
            return {}, ()
        module, device = setup.module, self.accelerator.device
        with evaluating(module), torch.no_grad(), seen_inputs(module, setup.plan) as seen:
            for batch in gathered(setup.workload.train, BATCHES):
                setup.workload.forward(module, to_device(batch, device))
        unseen = seen.unseen()
        return seen.inputs(), (unseen_note(ranking.name, unseen),) if unseen else ()

    def _ranked(self, inputs: Mapping[str, Inputs], name: str) -> Tensor:
        """What ranks the units of a site among those of all sites."""
        setup = self.setup
        layout = setup.plan.layouts[name]
        ranking = ranking_of(setup.method, random_init=setup.random_init) or Magnitude()
        return layout.centre(
            first_score(ranking, name, layout, self.weights[name], inputs, setup.training.seed)
        )

    def _first(self, method: Learned, inputs: Mapping[str, Inputs], site: Site) -> Tensor:
        setup, name = self.setup, site.name
        ranking = ranking_of(setup.method, random_init=setup.random_init)
        return ranks_of(
            method, ranking, name, site.layout, self.weights[name], inputs, setup.training.seed
        )

    def _counts(self, inputs: Mapping[str, Inputs]) -> dict[str, int]:
        """How many units each site keeps: by one ranking of all, or the same share of each."""
        setup = self.setup
        sizes = {site.name: site.units for site in setup.plan.sites}
        if setup.budget.shape.density is not None:
            return sizes
        if ranking_of(setup.method, random_init=setup.random_init) is None:
            return even_counts(sizes, setup.budget)
        scores = MadeScores(sizes, partial(self._ranked, inputs))
        return ranked_counts(scores, setup.budget)


class _OnDevice(Sequence[Any]):
    """Values that come from files, on a device."""

    def __init__(self, values: Sequence[Any], device: torch.device) -> None:
        self._values, self._device = values, device

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        value = self._values[index]
        return value if self._device.type == "cpu" else to_device(value, self._device)
