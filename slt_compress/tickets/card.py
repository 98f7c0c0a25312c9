"""The model card of a ticket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from slt_compress.masks import Masks
from slt_compress.storage.outside import code_span, markdown
from slt_compress.tickets.records import Metrics


def ticket_card(
    origin: Mapping[str, object],
    masks: Masks,
    metrics: Metrics,
    *,
    method: str,
    pattern: str,
    permuted: bool = False,
    gains: int = 0,
    tuned: int = 0,
    data: Mapping[str, object] | None = None,
) -> str:
    """Markdown for a ticket, beside whose masks so many numbers were trained.

    `permuted`: the pattern holds in stored orders of inputs. `data` is what the ticket records of
    the data set.
    """
    in_pattern = f" in the pattern {code_span(pattern)}" if pattern != "unstructured" else ""
    in_pattern += " in stored orders of inputs" if permuted else ""
    facts = described_data(data)
    lines = [
        front_matter(origin, metrics, facts),
        f"# {title_of(origin)}: a ticket",
        "",
        f"{masks.kept:,} of {masks.total:,} gated weights are kept "
        f"({1 - masks.density:.2%} sparse), found by the method {code_span(method)}{in_pattern}. "
        + trained_note(gains, tuned),
        "",
        *flip_note(masks.flipped, masks.kept),
        *measured_on(facts),
        *metric_table(metrics),
        "",
        "```python",
        *own_loading("path/to/this/folder", origin),
        "```",
        "",
    ]
    return "\n".join(lines)


def derived_card(origin: Mapping[str, object], masks: Masks, note: str) -> str:
    """Markdown for a ticket that was made without a search."""
    lines = [
        front_matter(origin),
        f"# {title_of(origin)}: a ticket",
        "",
        f"{masks.kept:,} of {masks.total:,} gated weights are kept "
        f"({1 - masks.density:.2%} sparse): {markdown(note)}. "
        "This folder holds masks, not weights.",
        "",
        "```python",
        *own_loading("path/to/this/folder", origin),
        "```",
        "",
    ]
    return "\n".join(lines)


def trained_note(gains: int, tuned: int) -> str:
    """A sentence on what was trained: nothing, or gains of units and norms and biases."""
    if not gains and not tuned:
        return "No weight was trained: this folder holds masks, not weights."
    parts = [(gains, "gains of kept units"), (tuned, "norms and biases")]
    counted = " and ".join(f"{count:,} {what}" for count, what in parts if count)
    return f"No gated weight was trained; {counted} were, and lie in this folder beside the masks."


def flip_note(flipped: int, kept: int) -> list[str]:
    """A line on flipped signs, where there are any."""
    if not flipped:
        return []
    return [f"Flips: {flipped:,} of the {kept:,} kept weights have their sign flipped.", ""]


def own_loading(folder: str, origin: Mapping[str, object]) -> list[str]:
    """The Python code that loads a folder with slt_compress."""
    own = ", model=your_module" if origin.get("family") == "module" else ""
    return ["import slt_compress", "", f"model = slt_compress.load({json.dumps(folder)}{own})"]


def described_data(data: Mapping[str, object] | None) -> dict[str, object]:
    """Data set, split and examples that a ticket was measured on, as a report has them."""
    if data is None:
        return {}
    return {"dataset": data.get("spec"), "test": data.get("test"), "examples": data.get("splits")}


def measured_on(facts: Mapping[str, object]) -> list[str]:
    """A line with the data set that metrics are of, where it is known."""
    if not facts.get("dataset"):
        return []
    examples = facts.get("examples")
    count = examples.get("test") if isinstance(examples, Mapping) else None
    number = f"{count:,} examples of " if isinstance(count, int) else ""
    split = f" ({markdown(facts['test'])})" if facts.get("test") else ""
    return [f"Measured on {number}{code_span(_public(facts['dataset']))}{split}.", ""]


def _public(spec: object) -> str:
    """A data set as a card names it: of a local path only the last part."""
    text = str(spec)
    local = Path(text).expanduser().exists() or text.startswith((".", "/", "~"))
    return text.rstrip("/").rpartition("/")[2] if local else text


def _model_index(
    origin: Mapping[str, object], metrics: Metrics, facts: Mapping[str, object]
) -> list[dict[str, Any]]:
    """The metrics of the masked model, in the form that the hub reads."""
    hard, spec = metrics.get("hard"), facts.get("dataset")
    if not hard or not spec:
        return []
    name = _public(spec)
    dataset: dict[str, Any] = {"name": name, "type": name.partition(":")[0]}
    if ":" in name:
        dataset["config"] = name.partition(":")[2]
    if facts.get("test"):
        dataset["split"] = str(facts["test"])
    result = {
        "task": {"type": _PIPELINES.get(str(origin.get("task")), str(origin.get("task")))},
        "dataset": dataset,
        "metrics": [{"type": key, "value": value} for key, value in sorted(hard.items())],
    }
    title = str(origin.get("source")).rstrip("/").rpartition("/")[2]
    return [{"name": f"{title}, masked", "results": [result]}]


# What the hub calls tasks, where it has another name.
_PIPELINES = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "seq2seq": "text2text-generation",
    "features": "feature-extraction",
}


def front_matter(
    origin: Mapping[str, object],
    metrics: Metrics | None = None,
    facts: Mapping[str, object] | None = None,
) -> str:
    """The YAML that the hub reads from the top of a card, with the metrics where there are any."""
    content: dict[str, Any] = {"tags": ["slt-compress", "sparse"]}
    if origin.get("kind") == "hub":
        content["base_model"] = origin.get("source")
    if origin.get("license"):
        content["license"] = origin["license"]
    if origin.get("family") in ("transformers", "timm"):
        content["library_name"] = origin["family"]
    index = _model_index(origin, metrics or {}, facts or {})
    if index:
        content["model-index"] = index
    return "---\n" + yaml.safe_dump(content, sort_keys=True) + "---"


def title_of(origin: Mapping[str, object]) -> str:
    """The name of a model for the title of a card, as Markdown."""
    name = str(origin.get("source")).rstrip("/").rpartition("/")[2]
    init = origin.get("init")
    if not isinstance(init, Mapping):
        return markdown(name)
    return markdown(f"{name} (random init {init.get('scheme')}, seed {init.get('seed')})")


def metric_table(metrics: Metrics) -> list[str]:
    """Metrics as a Markdown table, a row for each model."""
    names = sorted({name for values in metrics.values() for name in values or ()})
    if not names:
        return ["Nothing was measured."]
    rows = [
        f"| {markdown(model)} | " + " | ".join(_cell(values, name) for name in names) + " |"
        for model, values in metrics.items()
        if values
    ]
    return [
        f"| model | {' | '.join(map(markdown, names))} |",
        "|---" * (len(names) + 1) + "|",
        *rows,
    ]


def _cell(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.4f}" if name in values else ""
