"""Memory of a search besides activations: what it needs, and what this machine has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from slt_compress.anatomy.blocks import block_names
from slt_compress.anatomy.recomputing import may_recompute
from slt_compress.anatomy.states import tensors_nbytes
from slt_compress.gates import Learned, Method
from slt_compress.searching.recipes import Recipe
from slt_compress.searching.settings import Training
from slt_compress.searching.stepping import MANY
from slt_compress.sites.sites import Site, SitePlan

# Tensors per score that an optimizer keeps: Adam has two moments, SGD has its momentum.
_MOMENTS: Mapping[str, int] = MappingProxyType({"adam": 2, "sgd": 1})
# Bytes of one weight in the copy that autocast makes, by precision of the search.
_CAST: Mapping[str, int] = MappingProxyType({"no": 0, "bf16": 2, "fp16": 2})
_SCORE = 4  # bytes of a score and of its gradient: fp32
_STATE: Mapping[str, int] = MappingProxyType({"fp32": 4, "bf16": 2})
_TRANSIENT = 3  # temporary fp32 tensors of a gate, each of the size of its site


def memory_of(
    module: nn.Module, sites: SitePlan, recipe: Recipe, method: Method
) -> dict[str, dict[str, dict[str, int]]]:
    """Bytes by precision and optimizer. A one-shot method has scores only and no optimizer.

    `weights` counts the weights of the model. `scores` includes the running mean; the best scores
    so far wait in a file. `gradients` are all of them where a step needs them at once, else those
    of the largest site. `effective` counts the weights times their gates, which live from forward
    to backward, and autocast's copies of them; of blocks that run again, those of the largest. A
    search block by block needs what its largest block does, the layers outside, and a bit per mask.
    """
    stored = tensors_nbytes([*module.parameters(), *module.buffers()])
    if recipe.objective.name == "reconstruct":
        stored = _stored_by_blocks(module) + sites.gated // 8
        sites = _largest_block(module, sites)
    scored = sum(prod(site.layout.grid(site.shape)) for site in sites.sites)
    if not isinstance(method, Learned):
        parts = {"weights": stored, "scores": _SCORE * scored}
        return {"no": {"none": {**parts, "total": sum(parts.values())}}}
    training, largest = recipe.training, max(site.numel for site in sites.sites)
    state = _STATE[training.state]
    memory: dict[str, dict[str, dict[str, int]]] = {}
    for precision, cast in _CAST.items():
        for name, moments in _MOMENTS.items():
            parts = {
                "weights": stored,
                "scores": scored * (_SCORE + (state if training.ema else 0)),
                "gradients": _gradients(module, sites, scored, training, precision),
                "optimizer": scored * moments * state,
                "effective": _effective(module, sites, training, cast),
                "transient": _TRANSIENT * torch.float32.itemsize * largest,
            }
            memory.setdefault(precision, {})[name] = {**parts, "total": sum(parts.values())}
    return memory


def _stored_by_blocks(module: nn.Module) -> int:
    """Bytes of what is outside of all blocks, of vectors and buffers, and of the largest block."""
    blocks = {
        name: tensors_nbytes(p for p in module.get_submodule(name).parameters() if p.dim() > 1)
        for name in block_names(module)
    }
    every = tensors_nbytes([*module.parameters(), *module.buffers()])
    return every - sum(blocks.values()) + max(blocks.values(), default=0)


def _largest_block(module: nn.Module, plan: SitePlan) -> SitePlan:
    """The sites of the block with the most weights, or the site outside of all blocks."""
    blocks = block_names(module)
    groups: dict[str, list[Site]] = {}
    for site in plan.sites:
        inside = (block for block in blocks if f"{site.module}.".startswith(f"{block}."))
        groups.setdefault(next(inside, site.name), []).append(site)
    largest = max(groups.values(), key=lambda group: sum(site.numel for site in group))
    return replace(plan, sites=tuple(largest))


def _gradients(
    module: nn.Module, sites: SitePlan, scored: int, training: Training, precision: str
) -> int:
    """Of scores, and of effective weights until they are turned into those."""
    largest = max(site.numel for site in sites.sites)
    together = training.clip is not None or precision == "fp16" or scored < MANY
    up_front = may_recompute(module) and training.recompute == "none"
    scores = scored if together or training.accumulate > 1 else largest
    return _SCORE * (scores + (sites.gated if up_front else largest))


def _effective(module: nn.Module, sites: SitePlan, training: Training, cast: int) -> int:
    sizes = {
        site.name: site.numel * (_element_size(module.get_submodule(site.module)) + cast)
        for site in sites.sites
    }
    if training.recompute == "none":
        return sum(sizes.values())
    inside = {
        block: sum(size for name, size in sizes.items() if name.startswith(f"{block}."))
        for block in block_names(module)
    }
    return sum(sizes.values()) - sum(inside.values()) + max(inside.values(), default=0)


def _element_size(layer: nn.Module) -> int:
    """Bytes of a weight, by the layer's parameters: to read a parametrized weight may change it."""
    return next((p.element_size() for p in layer.parameters()), torch.float32.itemsize)


def smaller_trainings(training: Training) -> tuple[Training, ...]:
    """The settings that need less memory, the one that costs least time and quality first."""
    recomputing = replace(training, recompute="blocks")
    changed = (recomputing, replace(recomputing, state="bf16"))
    return tuple(smaller for smaller in changed if smaller != training)


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take on this machine; None where that is not known."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        return None
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = (root / "sys/fs/cgroup" / name).read_text().strip()
        except OSError:
            continue
        if limit.isdecimal():  # a group without a limit says `max`, or more than there is
            free = min(free, int(limit))
    return free
