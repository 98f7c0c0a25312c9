"""Columns: find which of them hold the inputs and the labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from slt_compress.data.options import STORED
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slt_compress.data.options import DataOptions
    from slt_compress.data.rows import Feature, Kind, Rows


LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "score")
WORD_NAMES = ("tokens", "words")
TAG_NAMES = ("ner_tags", "tags", "labels")
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
    words, tags = _find(features, "words", WORD_NAMES), _find_tags(features, options.label)
    if words and tags and words != tags:
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
    usable: set[Kind] = {"classes", "integer", "number", "text", "tags", "words", "numbers"}
    known = [name for name in known if features[name].kind in usable]
    of_kind = [name for name, feature in features.items() if feature.kind == "classes"]
    return next(iter([*known, *of_kind]), None)


def _find_tags(features: Mapping[str, Feature], asked: str | None) -> str | None:
    """The column of tags, as class numbers or as strings."""
    if asked is not None:
        return asked if features[asked].kind in ("tags", "words") else None
    named = [n for n in TAG_NAMES if n in features and features[n].kind in ("tags", "words")]
    return named[0] if named else _find(features, "tags", TAG_NAMES)


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
