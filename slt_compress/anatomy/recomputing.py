"""Recomputing: blocks that run again in the backward pass instead of keeping what they made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from slt_compress.anatomy.blocks import block_names
from slt_compress.anatomy.gradient_paths import runs_again

# Packages whose layers run again only where `runs_again` knows it.
_KNOWN = ("torch", "transformers", "timm", "torchvision", "slt_compress")


def may_recompute(module: nn.Module) -> bool:
    """Whether some part of a module may run again in its backward pass.

    What it reads of itself must then be the same tensors as before. Code of the user's own may do
    so unseen.
    """
    return any(
        type(child).__module__.partition(".")[0] not in _KNOWN or runs_again(child)
        for child in module.modules()
    )


@contextmanager
def recomputed_blocks(module: nn.Module) -> Iterator[int]:
    """Run every block of a module again in the backward pass; the number of blocks.

    Only the input of a block is kept in between. Caches of keys and values are off inside this
    block, because a second run would add to them.
    """
    blocks = [module.get_submodule(name) for name in block_names(module)]
    with ExitStack() as stack:
        for config in {id(c): c for c in map(_cached_config, module.modules()) if c}.values():
            config.use_cache = False
            stack.callback(setattr, config, "use_cache", True)
        for block in blocks:
            own = vars(block).get("forward")
            run = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            block.__dict__["forward"] = run
            if own is None:
                stack.callback(block.__dict__.pop, "forward", None)
            else:
                stack.callback(block.__dict__.__setitem__, "forward", own)
        yield len(blocks)


def _cached_config(child: nn.Module) -> Any:
    config: Any = getattr(child, "config", None)
    return config if getattr(config, "use_cache", False) is True else None
