"""The overview of a data set: what is read, what is measured, and what looks wrong about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slt_compress.checkpoints.tasks import LANGUAGE_TASKS

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint
    from slt_compress.checkpoints.tasks import Head
    from slt_compress.data.labels import LabelMatch
    from slt_compress.data.raw import RawData

_MEASURED: dict[Head, str] = {
    "classes": "accuracy and loss",
    "flags": "F1, mean average precision and loss",
    "numbers": "Pearson and Spearman correlation and loss",
}
_SAMPLE = 200


def overview(raw: RawData, checkpoint: Checkpoint, match: LabelMatch, head: Head) -> str:
    """One line: columns, examples, classes, whether the labels match, and what is measured."""
    read = f"reads {_listed(raw)}"
    if raw.columns.label is not None:
        read += f" with the labels in column {raw.columns.label}"
    counts = ", ".join(f"{len(rows):,} rows to {use}" for use, rows in zip(
        ("search on", f"measure on ({raw.test_split})"),
        (raw.splits["train"], raw.splits["test"]), strict=True,
    ))  # fmt: skip
    return f"{raw.spec}: {read}; {counts}; {_labels(raw, checkpoint, match, head)}"


def _listed(raw: RawData) -> str:
    names = raw.columns.inputs
    return ("columns " if len(names) > 1 else "column ") + " and ".join(names)


def _labels(raw: RawData, checkpoint: Checkpoint, match: LabelMatch, head: Head) -> str:
    if checkpoint.task in LANGUAGE_TASKS:
        return "its own text is predicted, so loss and perplexity are measured"
    if not match.matches:
        return "labels are not used, so agreement with the dense model is measured"
    what = _classes(raw)
    sure = f" ({match.assumed})" if match.assumed else ""
    return f"{what} match the model{sure}, so {_MEASURED[head]} are measured"


def _classes(raw: RawData) -> str:
    if raw.num_classes is None:
        return "its labels"
    if raw.regression:
        return f"{raw.num_classes} number(s) for each row"
    names = raw.classes or ()
    few = f" ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else ""
    return f"{raw.num_classes} classes{few}"


def warnings_about(raw: RawData, checkpoint: Checkpoint, match: LabelMatch) -> tuple[str, ...]:
    """What looks wrong: labels that are not used, one class, or one text in all rows."""
    labelled = checkpoint.task not in LANGUAGE_TASKS
    found = [match.note] if labelled and match.note and checkpoint.task != "features" else []
    if labelled and raw.columns.label is None:
        columns = ", ".join(raw.splits["train"].rows.features)
        found.append(
            f"{raw.spec} has no column of labels (its columns are {columns}); name one with "
            "--set data.label=COLUMN"
        )
    labels = raw.splits["train"].labels
    if labels is not None and labels.ndim == 1 and len(labels) > 1 and (labels == labels[0]).all():
        found.append(f"all rows of {raw.spec} to search on have the same label")
    if raw.modality == "text" and not raw.columns.tags:
        found += _one_text(raw)
    return (*found, *(note for note in raw.notes if "left out" in note or "no labels" in note))


def _one_text(raw: RawData) -> list[str]:
    rows = raw.splits["train"].rows
    sample = rows.column(raw.columns.inputs[0], range(min(_SAMPLE, len(rows))))
    texts = {str(value or "").strip() for value in sample}
    if len(sample) < 2 or len(texts) > 1:
        return []
    kind = "empty" if texts == {""} else "the same"
    return [f"the first {len(sample)} texts in column {raw.columns.inputs[0]} of {raw.spec} "
            f"are all {kind}"]  # fmt: skip
