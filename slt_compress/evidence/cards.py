"""The model card of an exported folder, from the evidence alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from slt_compress.artifacts.onnx_file import OnnxInput
from slt_compress.evidence.reporting import Report
from slt_compress.storage.outside import code_span, markdown
from slt_compress.tickets.card import (
    flip_note,
    front_matter,
    measured_on,
    metric_table,
    own_loading,
    title_of,
)


def artifact_card(
    report: Report,
    format: str,
    origin: Mapping[str, object],
    folder: str,
    *,
    rounded_to: str | None = None,
) -> str:
    """Markdown for an exported folder, whose kept weights may be rounded."""
    exactly = f", rounded to {rounded_to}." if rounded_to else ", bit for bit."
    sparsity = report.sparsity
    lines = [
        front_matter(origin, report.metrics, report.search),
        f"# {title_of(origin)}, {sparsity['achieved']:.2%} sparse",
        "",
        f"{sparsity['kept']:,} of {sparsity['gated']:,} gated weights are kept; the model has "
        f"{sparsity['parameters']:,} parameters in all{_pattern_clause(report)}. Every kept weight "
        "is the origin's" + _gain_clause(report, origin) + exactly,
        "",
        *_tuned_note(report),
        *flip_note(sparsity.get("flips", 0), sparsity["kept"]),
        *measured_on(report.search),
        *metric_table(report.metrics),
        "",
        "## How to load it",
        "",
        *how_to_load(format, origin, folder),
        "",
        *_no_weights(format, origin)[2:],
        "`slt-compress verify` on this folder proves the statements above; `report.json` holds "
        "the sparsity of every layer.",
        "",
        *_next_steps(report, format, origin),
    ]
    return "\n".join(lines)


def _next_steps(report: Report, format: str, origin: Mapping[str, object]) -> list[str]:
    """Markdown on what destroys zeros later, and on how to tell."""
    lines = [
        "## Before you change it",
        "",
        "Many later steps (4-bit formats with an offset, LoRA merges, optimizers, averages of "
        "weights) turn zeros into other numbers without a message: `docs/after-the-mask.md` of "
        "slt-compress lists them with the safe way for each, and `slt-compress audit MODEL "
        "--ticket TICKET` tells what a model still holds.",
        "",
    ]
    warning = in_chans_warning(report, origin)
    return [*lines, warning, ""] if format == "dense" and warning else lines


def in_chans_warning(report: Report, origin: Mapping[str, object]) -> str:
    """What timm does to a masked first convolution; empty where it has none."""
    config = origin.get("config")
    chans = config.get("in_chans", 3) if isinstance(config, Mapping) else 3
    first = next((layer for layer in report.layers if len(layer.get("shape", ())) == 4), None)
    if origin.get("family") != "timm" or first is None or first["shape"][1] != chans:
        return ""
    return (
        f"`timm.create_model(..., in_chans=N)` with another N than {chans} sums or repeats the "
        f"input channels of {first['name']}, which loses zeros of it."
    )


def _gain_clause(report: Report, origin: Mapping[str, object]) -> str:
    if report.sparsity.get("gains"):
        return " times the recorded gain of its unit, which was trained"
    return " times the recorded gain of its layer" if origin.get("init") else ""


def _tuned_note(report: Report) -> list[str]:
    """A line on norms and biases that were trained, where any were."""
    tuned = report.sparsity.get("tuned", 0)
    if not tuned:
        return []
    return [f"Tuned: {tuned:,} numbers of norms and biases were trained beside the mask.", ""]


def _pattern_clause(report: Report) -> str:
    pattern, units = report.recipe.get("pattern"), report.sparsity.get("units")
    if pattern in (None, "unstructured"):
        return ""
    if units is None:
        return f". The masks have the pattern {code_span(pattern)}"
    return f". The pattern {code_span(pattern)} keeps {units['kept']:,} of {units['gated']:,} units"


def how_to_load(format: str, origin: Mapping[str, object], folder: str) -> list[str]:
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
        code = own_loading(folder, origin)
    return ["```python", *code, "```"]


def loading_guide(format: str, origin: Mapping[str, object]) -> str:
    """Markdown for HOW_TO_LOAD.md: the code, and what it means where a library finds no weights.

    It is equal for equal exports, whatever their folders are called.
    """
    lines = ["# How to load this folder", "", *how_to_load(format, origin, "path/to/this/folder")]
    return "\n".join([*lines, "", *_no_weights(format, origin)])


def _no_weights(format: str, origin: Mapping[str, object]) -> list[str]:
    """What other libraries say of a folder that only slt-compress reads."""
    if format == "dense" or format == "onnx":
        return []
    said = _SAID.get(str(origin.get("family")), "No other library can open them.")
    return [
        "## If a library says that there is no model.safetensors",
        "",
        f"The weights are in the format `{format}` of slt-compress (`pip install slt-compress`), "
        f"in files of another name, so that no library fills in random weights instead. {said} For "
        "a folder that opens without slt-compress, export the ticket with `slt-compress export "
        "TICKET --format dense`.",
        "",
    ]


_SAID = {
    "transformers": "Without it transformers ends with an `OSError` (no file named "
    "model.safetensors) or says that the quantization type is unknown; after `import slt_compress` "
    "its own `from_pretrained` works.",
    "timm": "timm itself cannot open them.",
}


def onnx_inputs(
    inputs: Sequence[OnnxInput], origin: Mapping[str, object], folder: str
) -> list[str]:
    """Markdown on the inputs of an ONNX model: name, dtype and shape, and what prepares them."""
    names = {value.name for value in inputs}
    lines = ["## Inputs", "", "| name | dtype | shape |", "|---|---|---|"]
    for value in inputs:
        cells = (value.name, value.dtype, ", ".join(map(str, value.shape)))
        lines.append(f"| {' | '.join(map(markdown, cells))} |")
    lines += ["", "Where the shape has a word, any size will do.", ""]
    if origin.get("family") == "transformers":
        name, example = next(
            (rest for needed, *rest in _PREPARING if set(needed) <= names), ("AutoProcessor", "…")
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
