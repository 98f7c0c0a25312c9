"""The model card of a ticket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from slt_compress.masks import Masks


def ticket_card(
    origin: Mapping[str, Any],
    masks: Masks,
    metrics: Mapping[str, Any],
    *,
    method: str,
    pattern: str,
) -> str:
    """Markdown for a ticket."""
    lines = [
        _front_matter(origin),
        f"# {_title(origin)}: a ticket",
        "",
        f"{masks.kept:,} of {masks.total:,} gated weights are kept "
        f"({1 - masks.density:.2%} sparse), found by the method `{method}`"
        + (f" in the pattern `{pattern}`. " if pattern != "unstructured" else ". ")
        + "No weight was trained: this folder holds masks, not weights.",
        "",
        *_flips(masks.flipped, masks.kept),
        *_metric_table(metrics),
        "",
        "```python",
        *_own_loading("path/to/this/folder", origin),
        "```",
        "",
    ]
    return "\n".join(lines)


def derived_card(origin: Mapping[str, Any], masks: Masks, note: str) -> str:
    """Markdown for a ticket that no search made."""
    lines = [
        _front_matter(origin),
        f"# {_title(origin)}: a ticket",
        "",
        f"{masks.kept:,} of {masks.total:,} gated weights are kept "
        f"({1 - masks.density:.2%} sparse): {note}. This folder holds masks, not weights.",
        "",
        "```python",
        *_own_loading("path/to/this/folder", origin),
        "```",
        "",
    ]
    return "\n".join(lines)


def _flips(flipped: int, kept: int) -> list[str]:
    if not flipped:
        return []
    return [f"Flips: {flipped:,} of the {kept:,} kept weights have their sign flipped.", ""]


def _own_loading(folder: str, origin: Mapping[str, Any]) -> list[str]:
    own = ", model=your_module" if origin.get("family") == "module" else ""
    return ["import slt_compress", "", f"model = slt_compress.load({json.dumps(folder)}{own})"]


def _front_matter(origin: Mapping[str, Any]) -> str:
    content: dict[str, Any] = {"tags": ["slt-compress", "sparse"]}
    if origin.get("kind") == "hub":
        content["base_model"] = origin.get("source")
    if origin.get("license"):
        content["license"] = origin["license"]
    if origin.get("family") in ("transformers", "timm"):
        content["library_name"] = origin["family"]
    return "---\n" + yaml.safe_dump(content, sort_keys=True) + "---"


def _title(origin: Mapping[str, Any]) -> str:
    name = str(origin.get("source")).rstrip("/").rpartition("/")[2]
    init = origin.get("init")
    return f"{name} (random init {init['scheme']}, seed {init['seed']})" if init else name


def _metric_table(metrics: Mapping[str, Any]) -> list[str]:
    names = sorted({name for found in metrics.values() if found for name in found})
    if not names:
        return ["Nothing was measured."]
    rows = [
        f"| {kind} | " + " | ".join(_cell(found, name) for name in names) + " |"
        for kind, found in metrics.items()
        if found
    ]
    return [f"| model | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *rows]


def _cell(found: Mapping[str, float], name: str) -> str:
    return f"{found[name]:.4f}" if name in found else ""
