"""The progress of a search by blocks: the masks of the blocks that are done, and their steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from slt_compress.masks import Masks, pack_bits, unpack_bits
from slt_compress.searching.block_passes import Stage
from slt_compress.searching.interrupting import Steps
from slt_compress.searching.resuming import Progress, SearchFolder, saved_at_the_end
from slt_compress.searching.state import Step
from slt_compress.sites.sites import Site
from slt_compress.storage.lazy import LazyMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Saver:
    """Saves the progress of a search by blocks, where there is a folder for it."""

    folder: SearchFolder | None
    steps: Steps

    def stop_if_asked(self) -> None:
        """End the search between two steps, if a signal asked for it."""
        if self.folder is not None:
            self.steps.stop_if_asked(self.folder.path)

    def kept(self, progress: Progress) -> AbstractContextManager[None]:
        """Save the progress so far, if the search ends in this block of the program."""
        return saved_at_the_end(self.folder, lambda: progress)

    def after_block(self, progress: Progress) -> None:
        """Save the progress, if it is time to; or stop, if a signal asked for it."""
        with self.kept(progress):
            self.stop_if_asked()
        if self.folder is not None and self.folder.due():
            self.folder.save(progress)


def heard_in_block(
    steps: list[Step], on_step: Callable[[Step], None], number: int, stages: int, step: Step
) -> None:
    """Note a step of stage `number`, and pass it on as one of all steps."""
    steps.append(step)
    on_step(replace(step, index=number * step.total + step.index, total=stages * step.total))


def with_block(progress: Progress, masks: Masks, stage: Stage, steps: Sequence[Step]) -> Progress:
    """The progress after a stage."""
    bits = {f"mask/{name}": pack_bits(mask) for name, mask in masks.items()}
    flips = {f"flip/{name}": pack_bits(flip) for name, flip in masks.flips.items()}
    made = [
        {"block": stage.module, **{k: v for k, v in asdict(step).items() if k != "seconds"}}
        for step in steps
    ]
    return replace(
        progress, bits={**progress.bits, **bits, **flips}, history=(*progress.history, *made)
    )


def masks_of(progress: Progress, sites: Sequence[Site]) -> Masks:
    """The masks of some sites that are done; empty where they are not."""
    shapes, bits = {site.name: site.shape for site in sites}, progress.bits
    done = {
        kind: [name for name in shapes if f"{kind}/{name}" in bits] for kind in ("mask", "flip")
    }

    def unpacked(kind: str) -> Mapping[str, Tensor]:
        return LazyMapping(
            done[kind], lambda name: unpack_bits(bits[f"{kind}/{name}"], shapes[name])
        )

    return Masks(unpacked("mask"), unpacked("flip"))
