"""Silencing: weights that are kept and yet read, or feed, nothing but removed units.

Counted where the graph is obvious: the next matrix of an `nn.Sequential`, the second half of an
MLP or residual block by its usual names, the queries, keys and values of a removed head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from slt_compress.anatomy.attentions import FEEDERS, attention_of
from slt_compress.masks import Masks
from slt_compress.sites.layouts import kept_units
from slt_compress.sites.sites import Site, SitePlan

# What reads the outputs of a submodule, both named from the module that holds them.
_READERS = (
    ("fc1", "fc2"), ("fc2", "fc3"), ("lin1", "lin2"), ("c_fc", "c_proj"), ("up_proj", "down_proj"),
    ("gate_proj", "down_proj"), ("wi", "wo"), ("wi_0", "wo"), ("wi_1", "wo"), ("w1", "w2"),
    ("w3", "w2"), ("conv1", "conv2"), ("conv2", "conv3"), ("intermediate.dense", "output.dense"),
)  # fmt: skip


def silenced(
    module: nn.Module, plan: SitePlan, masks: Masks, *, heads: bool
) -> tuple[dict[str, int], list[str]]:
    """Kept weights without effect by parameter; and the sites whose neighbours are not known.

    A removed neuron or channel leaves its readers a constant; a removed head leaves the rows that
    make its queries, keys and values (those of a shared key once all its heads are gone) unread.
    With `heads` the units of the plan are heads, else outputs.
    """
    dead, unknown = silenced_lines(module, plan, masks, heads=heads)
    counts = {name: _kept(masks, name, lines) for name, lines in dead.items()}
    return {name: count for name, count in counts.items() if count}, unknown


def silenced_lines(
    module: nn.Module, plan: SitePlan, masks: Masks, *, heads: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """By parameter, which weights read or feed removed units only; and the sites not known."""
    dead: dict[str, Tensor] = {}
    unknown: list[str] = []
    for site in plan.sites:
        removed = ~kept_units(site.layout, masks[site.name]).reshape(-1)
        if not bool(removed.any()):
            continue
        attention = attention_of(module, site.module) if heads else None
        if attention is None:
            found = dict(_readers(module, site, removed))
        else:
            found = dict(_feeders(module, attention, removed))
        if not found:
            unknown.append(site.name)
        for name, lines in found.items():
            dead[name] = dead[name] | lines if name in dead else lines
    return dead, unknown


def _kept(masks: Masks, name: str, lines: Tensor) -> int:
    return int((masks[name] & lines).sum() if name in masks else lines.sum())


def _readers(module: nn.Module, site: Site, removed: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parameter that reads a site's outputs, and which of its weights read removed ones."""
    for name in _next_of(module, site.module):
        reader = module.get_submodule(name)
        weight = getattr(reader, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2:
            continue
        dim = 0 if type(reader).__name__ == "Conv1D" else 1
        times, rest = divmod(weight.shape[dim], removed.numel())
        if rest or not times or (times > 1 and weight.dim() > 2):
            continue  # times: pixels of a channel, flattened
        shape = [1] * weight.dim()
        shape[dim] = weight.shape[dim]
        yield f"{name}.weight", removed.repeat_interleave(times).view(shape).expand(weight.shape)


def _next_of(module: nn.Module, name: str) -> Iterator[str]:
    for first, second in _READERS:
        holder = name.removesuffix(first).removesuffix(".")
        if name in (first, f"{holder}.{first}"):
            reader = f"{holder}.{second}".removeprefix(".")
            if _has(module, reader):
                yield reader
    holder, _, leaf = name.rpartition(".")
    chain = module.get_submodule(holder)
    if isinstance(chain, nn.Sequential):
        names = [child for child, _ in chain.named_children()]
        for child in names[names.index(leaf) + 1 :]:
            if any(parameter.dim() > 1 for parameter in chain.get_submodule(child).parameters()):
                yield f"{holder}.{child}".removeprefix(".")
                return


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


def _feeders(module: nn.Module, attention: str, removed: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The parameters that make the queries, keys and values of removed heads, and which rows."""
    owner = module.get_submodule(attention)
    parameters: Mapping[str, nn.Parameter] = dict(owner.named_parameters())
    queries = next((p for n, p in parameters.items() if _feeds(n) in ("q", "qkv")), None)
    for name, parameter in parameters.items():
        feeds = _feeds(name)
        if not feeds or parameter.dim() < 2 or queries is None:
            continue
        transposed = type(owner.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
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
    """`q`, `kv` or `qkv`, where the parameter of this name makes them."""
    path = name.split(".")
    if path[-1] == "weight":
        return FEEDERS.get(path[-2]) if len(path) > 1 else None
    return FEEDERS.get(path[-1])
