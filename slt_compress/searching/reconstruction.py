"""Reconstruction: a search block by block, for models larger than memory.

Only one block's weights, scores and moments are in memory, beside what is outside of all blocks.
The outputs of a block for the training batches wait on disk for the next one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp

import torch
from accelerate import Accelerator

from slt_compress.anatomy.residence import Residence
from slt_compress.errors import RecipeError
from slt_compress.gates import Learned, Swaps
from slt_compress.gates.gating import gated
from slt_compress.searching.accelerators import accelerator_or
from slt_compress.searching.block_walk import Way
from slt_compress.searching.conclusion import Measuring, SearchResult
from slt_compress.searching.events import Part
from slt_compress.searching.preflight import fit_precision_, precision_notes
from slt_compress.searching.resuming import Progress, SearchFolder
from slt_compress.searching.search import OnStep
from slt_compress.searching.setup import SearchSetup

# Steps for each block where neither steps nor epochs are given.
STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction(SearchSetup):
    """One search by blocks; `residence` is that of the module."""

    residence: Residence

    def to_cpu_(self) -> None:
        """Move the module to the CPU, with what is in memory of it."""
        self.residence.to_(torch.device("cpu"))

    def run(
        self,
        on_step: OnStep | None = None,
        folder: SearchFolder | None = None,
        accelerator: Accelerator | None = None,
    ) -> SearchResult:
        """Search; arguments as for `Search.run`. Blocks that are saved in the folder are done.

        Raises:
            RecipeError: a setting needs the whole network at once.
        """
        _check(self)
        saved, weights = folder.load() if folder else None, self.weights()
        with (
            accelerator_or(accelerator, self.training) as accelerator,
            _scratch(folder) as scratch,
            self._on(accelerator),
            gated(self.module, self.plan, rescale=self.rescales) as gates,
            self.residence.running(),
        ):
            self.residence.to_(accelerator.device)
            measuring = Measuring.of(self, gates)
            if saved is None:
                self.tell(Part("dense"))
                dense = measuring.measure(self.workload.test, None)
                saved = Progress(notes=(), dense=dense, buffers={})
            way = Way(
                setup=self, residence=self.residence, gates=gates, weights=weights,
                accelerator=accelerator, scratch=scratch,
            )  # fmt: skip
            progress, masks = way.walk(saved, on_step or (lambda step: None), folder)
            result = measuring.conclude_masks(
                masks, weights, dict(progress.dense or {}), progress.history
            )
            notes = (*progress.notes, *result.notes, *precision_notes(self.module, self.training))
            return replace(result, notes=notes)

    @contextmanager
    def _on(self, accelerator: Accelerator) -> Iterator[None]:
        """The module on the device of the search for as long as the block lasts."""
        home = next(self.module.parameters()).device
        try:
            self.residence.to_(accelerator.device)
            fit_precision_(accelerator, self.module, self.training)
            yield
        finally:
            self.residence.to_(home)


@contextmanager
def _scratch(folder: SearchFolder | None) -> Iterator[Path]:
    """A folder for what waits on disk, beside the ticket; it is gone at the end."""
    parent = folder.scratch() if folder is not None else None
    path = Path(mkdtemp(dir=parent, prefix="blocks-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _check(setup: SearchSetup) -> None:
    method = setup.method
    if setup.training.polish:
        raise RecipeError(
            "training.polish measures the whole network, which the objective reconstruct does not "
            "do during the search: leave it out, or use --method swaps"
        )
    if isinstance(method, Learned) and method.prior == "swaps" and not setup.random_init:
        raise RecipeError(
            "method.prior=swaps goes through the whole network before the search: with the "
            "objective reconstruct use method.prior=magnitude or wanda, or --method swaps"
        )
    if isinstance(method, Swaps) and (method.weighs or method.diagonal == "auto"):
        raise RecipeError(
            "with the objective reconstruct, swaps sees one block at a time: use "
            "method.exchange=row or layer, method.error=output and a number for method.diagonal"
        )
