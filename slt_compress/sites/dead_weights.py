"""Dead weights: weights that are kept although they read, or feed, removed units only.

They are counted where the graph is obvious: in the next matrix of an `nn.Sequential`, in the second
half of an MLP or residual block with the usual names, and in the queries, keys and values of a
removed head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from slt_compress.anatomy.attentions import FEEDERS, attention_of
from slt_compress.anatomy.parameters import is_conv1d
from slt_compress.anatomy.readers import readers_of
from slt_compress.masks import Masks
from slt_compress.sites.layouts import kept_units
from slt_compress.sites.sites import Site, SitePlan


def dead_weights(
    module: nn.Module, plan: SitePlan, masks: Masks, *, heads: bool
) -> tuple[dict[str, int], list[str]]:
    """Kept weights without effect, by parameter; and the sites whose neighbours are unknown.

    A removed neuron or channel leaves a constant to its readers. A removed head leaves the rows
    that compute its queries, keys and values unread (those of a shared key once all its heads are
    removed). With `heads` the units of the plan are heads, otherwise outputs.
    """
    dead, unknown = dead_lines(module, plan, masks, heads=heads)
    counts = {name: _kept(masks, name, lines) for name, lines in dead.items()}
    return {name: count for name, count in counts.items() if count}, unknown


def dead_lines(
    module: nn.Module, plan: SitePlan, masks: Masks, *, heads: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Masks of the weights that read or feed removed units only; and the sites not known."""
    dead: dict[str, Tensor] = {}
    unknown: list[str] = []
    for site in plan.sites:
        removed = ~kept_units(site.layout, masks[site.name]).reshape(-1)
        if not bool(removed.any()):
            continue
        attention = attention_of(module, site.module) if heads else None
        if attention is None:
            neighbours = dict(_readers(module, site, removed))
        else:
            neighbours = dict(_feeders(module, attention, removed))
        if not neighbours:
            unknown.append(site.name)
        for name, lines in neighbours.items():
            dead[name] = dead[name] | lines if name in dead else lines
    return dead, unknown


def _kept(masks: Masks, name: str, lines: Tensor) -> int:
    return int((masks[name] & lines).sum() if name in masks else lines.sum())


def _readers(module: nn.Module, site: Site, removed: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parameter that reads the outputs of a site, and the mask of its dead weights."""
    for name in readers_of(module, site.module):
        reader = module.get_submodule(name)
        weight = getattr(reader, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        dim = 0 if is_conv1d(reader) else 1
        times, rest = divmod(weight.shape[dim], removed.numel())
        if rest or not times or (times > 1 and weight.dim() > 2):
            continue  # `times` counts the pixels of a flattened channel
        shape = [1] * weight.dim()
        shape[dim] = weight.shape[dim]
        yield f"{name}.weight", removed.repeat_interleave(times).view(shape).expand(weight.shape)


def _feeders(module: nn.Module, attention: str, removed: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parameters that compute queries, keys and values, and the mask of their dead weights."""
    owner = module.get_submodule(attention)
    parameters: Mapping[str, nn.Parameter] = dict(owner.named_parameters())
    queries = next((p for n, p in parameters.items() if _feeds(n) in ("q", "qkv")), None)
    for name, parameter in parameters.items():
        feeds = _feeds(name)
        if not feeds or parameter.dim() < 2 or queries is None:
            continue
        transposed = is_conv1d(owner.get_submodule(name.rpartition(".")[0]))
        outputs = parameter.shape[1 if transposed else 0]
        parts = 3 if feeds == "qkv" else 1
        shared = 1 if feeds == "qkv" else max(1, queries.shape[0] // outputs)
        if removed.numel() % shared or outputs % (removed.numel() // shared * parts):
            continue
        heads = removed.view(-1, shared).all(1)
        rows = heads.repeat_interleave(outputs // parts // heads.numel()).repeat(parts)
        lines = (rows[None, :] if transposed else rows[:, None]).expand(parameter.shape)
        yield f"{attention}.{name}".removeprefix("."), lines


def _feeds(name: str) -> str | None:
    """`q`, `kv` or `qkv`, if the parameter of this name computes them."""
    path = name.split(".")
    if path[-1] == "weight":
        return FEEDERS.get(path[-2]) if len(path) > 1 else None
    return FEEDERS.get(path[-1])
