"""Model cards: the README.md of a ticket and of an exported folder, from the evidence alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from slt_compress.masks import Masks
from slt_compress.recipes import Recipe
from slt_compress.reporting import Report


def ticket_card(
    origin: Mapping[str, Any], recipe: Recipe, masks: Masks, metrics: Mapping[str, Any]
) -> str:
    """Markdown for a ticket."""
    lines = [
        _front_matter(origin),
        f"# {_title(origin)}: a ticket",
        "",
        f"{masks.kept:,} of {masks.total:,} gated weights are kept "
        f"({1 - masks.density:.2%} sparse), found by the method `{recipe.method['name']}`"
        + (f" in the pattern `{recipe.pattern}`. " if recipe.pattern != "unstructured" else ". ")
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


def artifact_card(
    report: Report,
    format: str,
    origin: Mapping[str, Any],
    folder: str,
    *,
    rounded_to: str | None = None,
) -> str:
    """Markdown for an exported folder, whose kept weights may be rounded."""
    exactly = f", rounded to {rounded_to}." if rounded_to else ", bit for bit."
    sparsity = report.sparsity
    lines = [
        _front_matter(origin),
        f"# {_title(origin)}, {sparsity['achieved']:.2%} sparse",
        "",
        f"{sparsity['kept']:,} of {sparsity['gated']:,} gated weights are kept; the model has "
        f"{sparsity['parameters']:,} parameters in all{_pattern_clause(report)}. Every kept weight "
        "is the origin's"
        + (" times the recorded gain of its layer" if origin.get("init") else "")
        + exactly,
        "",
        *_flips(sparsity.get("flips", 0), sparsity["kept"]),
        *_metric_table(report.metrics),
        "",
        "## How to load it",
        "",
        *how_to_load(format, origin, folder),
        "",
        "`slt-compress verify` on this folder proves the statements above; `report.json` holds "
        "the sparsity of every layer.",
        "",
    ]
    return "\n".join(lines)


def _flips(flipped: int, kept: int) -> list[str]:
    if not flipped:
        return []
    return [f"Flips: {flipped:,} of the {kept:,} kept weights have their sign flipped.", ""]


def _pattern_clause(report: Report) -> str:
    pattern, units = report.recipe.get("pattern"), report.sparsity.get("units")
    if pattern in (None, "unstructured"):
        return ""
    if units is None:
        return f". The masks have the pattern `{pattern}`"
    return f". The pattern `{pattern}` keeps {units['kept']:,} of {units['gated']:,} units"


def how_to_load(format: str, origin: Mapping[str, Any], folder: str) -> list[str]:
    """Markdown with the code that opens an exported folder."""
    family = origin.get("family")
    if format == "dense" and family == "transformers":
        code = [
            f"from transformers import {_AUTO_CLASSES.get(str(origin.get('task')), 'AutoModel')}",
            "",
            f"model = {_AUTO_CLASSES.get(str(origin.get('task')), 'AutoModel')}"
            f".from_pretrained({json.dumps(folder)})",
        ]
    elif format == "dense" and family == "timm":
        code = [
            "import timm",
            "",
            f"model = timm.create_model({json.dumps('local-dir:' + folder)}, pretrained=True)",
        ]
    elif format == "onnx":
        code = [
            "import onnxruntime",
            "",
            f"session = onnxruntime.InferenceSession({json.dumps(folder + '/model.onnx')})",
            'logits = session.run(["logits"], inputs)[0]  # inputs: numpy arrays by name',
        ]
    else:
        code = _own_loading(folder, origin)
    return ["```python", *code, "```"]


def onnx_inputs(
    inputs: Sequence[Mapping[str, Any]], origin: Mapping[str, Any], folder: str
) -> list[str]:
    """Markdown on the inputs of an ONNX model: name, dtype and shape, and who makes them."""
    names = {str(value["name"]) for value in inputs}
    lines = ["## Inputs", "", "| name | dtype | shape |", "|---|---|---|"]
    for value in inputs:
        lines.append(
            f"| {value['name']} | {value['dtype']} | {', '.join(map(str, value['shape']))} |"
        )
    lines += ["", "Where the shape has a word, any size will do.", ""]
    if origin.get("family") == "transformers":
        name, example = next(
            (found for needed, *found in _PREPARING if set(needed) <= names), ("AutoProcessor", "…")
        )
        lines += [
            "```python",
            f"from transformers import {name}",
            "",
            f"prepare = {name}.from_pretrained({json.dumps(folder)})",
            f'made = prepare({example}, return_tensors="np")',
            "inputs = {value.name: made[value.name] for value in session.get_inputs()}",
            "```",
            "",
        ]
    return lines


_PREPARING = (
    (("input_ids", "pixel_values"), "AutoProcessor", 'text=["a text"], images=[picture]'),
    (("pixel_values",), "AutoImageProcessor", "[picture]"),
    (("input_ids",), "AutoTokenizer", '["a text"]'),
)


def _own_loading(folder: str, origin: Mapping[str, Any]) -> list[str]:
    own = ", model=your_module" if origin.get("family") == "module" else ""
    return ["import slt_compress", "", f"model = slt_compress.load({json.dumps(folder)}{own})"]


_AUTO_CLASSES: Mapping[str, str] = {
    "image-classification": "AutoModelForImageClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "visual-question-answering": "AutoModelForVisualQuestionAnswering",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
    "image-text-to-text": "AutoModelForImageTextToText",
    "features": "AutoModel",
}


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
