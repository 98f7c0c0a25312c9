"""Find which columns hold the inputs and the labels, and read the labels as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from slt_compress.data.labels import sorted_names
from slt_compress.data.options import STORED
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slt_compress.data.options import DataOptions
    from slt_compress.data.rows import Feature, Kind, Rows

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]

LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "score")
TEXT_NAMES = ("text", "sentence", "caption", "content")
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "answer"),
    ("source", "target"),
    ("document", "summary"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns that are used: one input (or a text pair) and perhaps a label.

    With `tags` the input is a list of words and the label a list of as many classes. Where the
    rows have images and texts, `image` and `texts` are what a model of both reads.
    """

    modality: str
    inputs: tuple[str, ...]
    label: str | None
    tags: bool = False
    image: str | None = None
    texts: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """What the rows can be read as."""
        both: tuple[str, ...] = ("image-text",) if self.image and self.texts else ()
        return (self.modality, *both)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the labels are: named classes, counted classes or a number to predict."""

    classes: tuple[str, ...] | None
    num_classes: int | None
    regression: bool


def find_columns(rows: Rows, options: DataOptions, spec: str) -> Columns:
    """Choose the columns by the options, else by their type and name.

    Raises:
        DataError: no column fits, or a named one is not there or of another type.
    """
    features = rows.features
    label = _named(features, options.label, "label", spec) or _find_label(features)
    for name in options.text:
        _named(features, name, "text", spec)
    texts = options.text or _find_text(features, label if options.label else None)
    media = {kind: _typed(features, getattr(options, kind), kind, spec) for kind in STORED}
    asked = [kind for kind in STORED if getattr(options, kind)]
    make = partial(Columns, image=media["image"], texts=texts)
    if options.text and not asked:
        return make(modality="text", inputs=texts, label=_other(label, texts))
    for kind in (*asked, *STORED):
        column = media[kind]
        if column:
            return make(modality=kind, inputs=(column,), label=_other(label, (column,)))
    if texts:
        return make(modality="text", inputs=texts, label=_other(label, texts))
    words = _find(features, "words", ("tokens", "words"))
    tags = options.label or _find(features, "tags", ("ner_tags", "tags", "labels"))
    if words and tags and features[tags].kind == "tags":
        return Columns(modality="text", inputs=(words,), label=tags, tags=True)
    raise DataError(
        f"{spec}: no column of images, text or sound was found among {', '.join(features)}; name "
        "one with --set data.image=COLUMN, data.text=COLUMN[,COLUMN] or data.audio=COLUMN"
    )


def _typed(features: Mapping[str, Feature], name: str | None, kind: Kind, spec: str) -> str | None:
    """The column of a kind of media: the one that the user names, else by its type and name."""
    name = _named(features, name, kind, spec)
    if name and features[name].kind != kind:
        raise DataError(
            f"{spec}: data.{kind}={name} names a column of kind {features[name].kind}, not {kind}s"
        )
    return name or _find(features, kind, STORED[kind].names)


def _named(features: Mapping[str, Feature], name: str | None, key: str, spec: str) -> str | None:
    if name is not None and name not in features:
        raise DataError(
            f"{spec} has no column {name!r} (data.{key}); its columns are {', '.join(features)}"
        )
    return name


def _other(label: str | None, inputs: tuple[str, ...]) -> str | None:
    return None if label in inputs else label


def _find(features: Mapping[str, Feature], kind: Kind, names: Sequence[str]) -> str | None:
    of_kind = [name for name, feature in features.items() if feature.kind == kind]
    return next((name for name in names if name in of_kind), of_kind[0] if of_kind else None)


def _find_label(features: Mapping[str, Feature]) -> str | None:
    known = [name for name in LABEL_NAMES if name in features]
    usable: set[Kind] = {"classes", "integer", "number", "text"}
    known = [name for name in known if features[name].kind in usable]
    of_kind = [name for name, feature in features.items() if feature.kind == "classes"]
    return next(iter([*known, *of_kind]), None)


def _find_text(features: Mapping[str, Feature], label: str | None) -> tuple[str, ...]:
    texts = [name for name, feature in features.items() if feature.kind == "text"]
    texts = [name for name in texts if name != label]
    for pair in PAIR_NAMES:
        if set(pair) <= set(texts):
            return pair
    for name in TEXT_NAMES:
        if name in texts:
            return (name,)
    rest = [name for name in texts if name not in LABEL_NAMES]
    return (rest[0],) if len(rest) == 1 else ()


def find_target(rows: Rows, label: str | None, spec: str) -> Target:
    """What the label column of the training split is.

    Class names are those of the data's own metadata, else the sorted distinct strings.

    Raises:
        DataError: a label column whose values are no classes.
    """
    if label is None:
        return Target(classes=None, num_classes=None, regression=False)
    feature = rows.features[label]
    if feature.kind == "classes" and feature.names:
        return Target(classes=feature.names, num_classes=len(feature.names), regression=False)
    if feature.kind == "number":
        return Target(classes=None, num_classes=1, regression=True)
    known = [value for value in rows.column(label) if value is not None]
    if feature.kind == "tags":
        tags = 1 + max((tag for row in known for tag in row if tag is not None), default=-1)
        count = len(feature.names) if feature.names else tags
        return Target(classes=feature.names, num_classes=count, regression=False)
    if feature.kind == "text" and known:
        names = sorted_names(known)
        if len(names) > max(1_000, len(known) // 2):
            raise DataError(
                f"{spec}: the label column {label} holds {len(names):,} different strings in "
                f"{len(known):,} rows, which are no classes; name another with data.label=COLUMN"
            )
        return Target(classes=names, num_classes=len(names), regression=False)
    if feature.kind == "integer":
        labels = [int(value) for value in known if int(value) >= 0]
        if labels and max(labels) < 1_000_000:
            return Target(classes=None, num_classes=max(labels) + 1, regression=False)
    raise DataError(
        f"{spec}: the label column {label} holds no class numbers; name another with "
        "--set data.label=COLUMN"
    )


def read_labels(rows: Rows, label: str | None, target: Target, spec: str) -> Labels | None:
    """The labels of a split: int64 [N] class numbers (-1 = none given) or float32 [N].

    Raises:
        DataError: a class that the training split does not have.
    """
    if label is None or label not in rows.features or rows.features[label].kind == "tags":
        return None
    values = rows.column(label)
    if target.regression:
        return np.array([np.nan if v is None else v for v in values], np.float32)
    if rows.features[label].kind == "text" and target.classes:
        numbers = {name: number for number, name in enumerate(target.classes)}
        unknown = sorted({str(v) for v in values if v is not None and v not in numbers})
        if unknown:
            raise DataError(
                f"{spec}: label {unknown[0]!r} in column {label} is none of the training split's "
                f"{len(numbers)} classes"
            )
        return np.array([-1 if v is None else numbers[v] for v in values], np.int64)
    found = np.array([-1 if v is None else int(v) for v in values], np.int64)
    if target.num_classes is not None and len(found) and found.max() >= target.num_classes:
        raise DataError(
            f"{spec}: label {found.max()} in column {label} is beyond the training split's "
            f"{target.num_classes} classes"
        )
    return found
