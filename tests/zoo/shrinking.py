"""Small instances: a config with few layers and narrow widths, by one rule for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Smaller divisors are tried where a model does not hold together at a larger one.
DIVISORS = (32, 16, 8, 4, 2)
_COUNTS = re.compile(r"(layers?|blocks?|depth|num_stages_?|_loops)$|^n_?layers?$")
_LISTS = re.compile(r"^(depths?|num_layers|layers_per_stage|num_blocks)$")
_EXPERTS = re.compile(r"(^|_)(num|n)_(local_|routed_|total_|moe_)?experts$")
_CHOSEN = re.compile(r"(experts_per_tok|num_selected_experts|topk|top_k)$")
_WIDTHS = re.compile(
    r"(hidden_size|hidden_dim|intermediate_size|_dim|dim|d_model|d_ff|d_kv|d_inner|d_head|n_embd|n_inner"
    r"|ffn_dim|hidden_sizes|embed_dims?|width|units|channels|inner_size|_rank|projection_size"
    r"|embedding_size|emb_dim)$"
)
_NOT_WIDTHS = re.compile(r"(num_channels|in_channels|input_dim|image|patch|kernel|mel|vocab|feat)")
_TOKEN = re.compile(r"(token_id|token_index|_id|_idx|_ids)$")
# Names of the layers that a backbone gives, which a smaller one does not have.
_OF_STAGES = ("out_features", "out_indices", "_out_features", "_out_indices", "stage_names")
VOCABULARY = 64
# Arguments that make the models of timm small, by what their families call them.
_ONES, _NARROW, _HEADS = (1, 1, 1, 1), (16, 16, 32, 32), (1, 1, 2, 2)
_SMALL: tuple[dict[str, Any], ...] = (
    {"embed_dim": 48, "depth": 1, "num_heads": 2},
    {"embed_dim": 16, "depths": _ONES, "num_heads": _HEADS},
    {"embed_dims": _NARROW, "depths": _ONES, "num_heads": _HEADS},
    {"embed_dim": 48, "depth": 1},
    {"embed_dim": 48, "num_blocks": 1},
    {"embed_dim": 16, "depths": _ONES},
    {"dim": 48, "depth": 1},
    {"depths": _ONES, "dims": _NARROW},
    {"depths": _ONES, "embed_dims": _NARROW},
    {"depths": _ONES, "channels": _NARROW},
    {"layers": _ONES, "channels": _NARROW},
    {"layers": _ONES, "embed_dims": _NARROW},
    {"block_config": _ONES, "growth_rate": 8},
    {"depths": _ONES},
    {"layers": _ONES},
)


def shrunk(config: Mapping[str, Any], divisor: int) -> dict[str, Any]:
    """The config with all its widths divided by `divisor`, one or two layers and few words."""
    return {
        name: _shrunk(name, value, divisor, config)
        for name, value in config.items()
        if name not in _OF_STAGES
    }


def _shrunk(name: str, value: Any, divisor: int, config: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return shrunk(value, divisor)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return [shrunk(entry, divisor) for entry in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        whole = next((c for k, c in config.items() if _is_count(k) and c == len(value)), None)
        return value if whole is None else value[: min(whole, 2)]
    if isinstance(value, list) and all(isinstance(v, int) for v in value):
        if _LISTS.search(name):
            return [1] * len(value)
        if _is_width(name):
            return [_narrow(v, divisor) for v in value]
        return value
    return _number(name, value, divisor) if isinstance(value, int) else value


def _number(name: str, value: int, divisor: int) -> int:
    if _EXPERTS.search(name):
        return min(value, 4)
    if _CHOSEN.search(name):
        return min(value, 2)
    if _is_count(name):
        return min(value, 2)
    if "vocab_size" in name:
        return min(value, VOCABULARY)
    if _TOKEN.search(name):
        return value if value < VOCABULARY else 3 + value % (VOCABULARY - 4)
    if name in ("image_size", "img_size"):
        return min(value, 64)
    if name in ("max_position_embeddings", "n_positions", "max_source_positions"):
        return min(value, 64)
    return _narrow(value, divisor) if _is_width(name) else value


def _is_width(name: str) -> bool:
    return bool(_WIDTHS.search(name)) and not _NOT_WIDTHS.search(name)


def _narrow(value: int, divisor: int) -> int:
    return value // divisor if value % divisor == 0 and value // divisor >= 2 else value


def _is_count(name: str) -> bool:
    return bool(_COUNTS.search(name)) and "feat_extract" not in name


def timm_arguments() -> Iterator[dict[str, Any]]:
    """Arguments of `timm.create_model` to try, the smallest first; a model refuses most of them."""
    for size in (64, 96, 128, 224):
        for widths in (*_SMALL, {}):
            yield {**widths, "img_size": size}
            yield {**widths, "_size": size}
