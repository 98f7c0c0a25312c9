"""Reading: when a step computes the effective weights, and how long they live."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from slt_compress.anatomy.blocks import block_names
from slt_compress.anatomy.recomputing import may_recompute, recomputed_blocks
from slt_compress.errors import RecipeError
from slt_compress.gates.gating import read_once
from slt_compress.searching.settings import Training
from slt_compress.sites.sites import SitePlan


def recomputing(module: nn.Module, training: Training) -> AbstractContextManager[Any]:
    """The blocks of the module run again in backward passes inside this block, if they are to.

    Raises:
        RecipeError: the network has no blocks.
    """
    if training.recompute == "none":
        return nullcontext()
    if not block_names(module):
        raise RecipeError(
            f"training.recompute=blocks: this {type(module).__name__} has no blocks (members of a "
            "ModuleList or Sequential) that could run again: use training.recompute=none"
        )
    return recomputed_blocks(module)


def reading_of(
    module: nn.Module, plan: SitePlan, training: Training, processes: int
) -> Callable[[], AbstractContextManager[Any]]:
    """What makes the context of a forward and backward pass of a search.

    Inside it all readers of a weight get the same tensor. A weight that is computed when it is
    first read passes its gradient on as soon as that is complete, and its gradient need not wait
    for all the others. Where parts of the network may run again in the backward pass, weights are
    computed up front. Blocks that `recomputing` runs again compute their weights each time.
    """
    if training.recompute == "blocks":
        return nullcontext
    if processes > 1 or may_recompute(module):
        return partial(read_once, module, plan)
    return parametrize.cached
