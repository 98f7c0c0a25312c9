"""Attention modules: their output projection, their heads, and the parameters that feed them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_OUTPUTS = frozenset(
    ("out_proj", "o_proj", "c_proj", "proj", "dense", "o", "wo", "out_lin", "to_out", "out")
)
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_WIDTHS = ("head_dim", "attention_head_size")
# Parameters that compute queries, keys and values: one of the three, or all three in this order.
FEEDERS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("q_proj", "query", "q", "q_lin", "wq"), "q"),
        **dict.fromkeys(("k_proj", "key", "k", "k_lin", "wk"), "kv"),
        **dict.fromkeys(("v_proj", "value", "v", "v_lin", "wv"), "kv"),
        **dict.fromkeys(("qkv", "c_attn", "in_proj_weight"), "qkv"),
    }
)


def attention_of(module: nn.Module, projection: str) -> str | None:
    """Name of the attention module whose output projection is `projection`; None if it is none."""
    path = projection.split(".")
    leaf = path[-2] if path[-1] == "0" and len(path) > 1 else path[-1]  # some keep to_out as a list
    if leaf not in _OUTPUTS:
        return None
    for depth in range(len(path) - 1, max(-1, len(path) - 4), -1):
        name = ".".join(path[:depth])
        if _ATTENTION.search(type(module.get_submodule(name)).__name__):
            return name
    return None


def head_count(module: nn.Module, attention: str, inputs: int) -> int | str:
    """Number of heads that share the `inputs` of an output projection, or why it is unknown."""
    owner = module.get_submodule(attention)
    places: list[object] = [owner, *owner.children()]
    places += [getattr(place, "config", None) for place in (owner, module)]
    heads = _first(places, _HEADS)
    width = _first(places[:-2], _WIDTHS)
    if width is not None and (heads is None or heads * width != inputs):
        heads = inputs // width if inputs % width == 0 else None
    if heads is None:
        return f"the number of heads of {attention or 'the module'} is not known"
    if inputs % heads:
        return f"its {inputs} inputs are not a multiple of {heads} heads"
    return heads


def _first(places: list[object], names: tuple[str, ...]) -> int | None:
    values = (getattr(place, name, None) for place in places for name in names)
    return next((v for v in values if type(v) is int and v > 0), None)
