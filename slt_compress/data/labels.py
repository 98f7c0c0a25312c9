"""Match the classes of a data set to those of a model's head."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slt_compress.checkpoints.tasks import Head
    from slt_compress.data.raw import RawData

IMAGENET_CLASSES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMatch:
    """Whether the labels of the data can be used for the head, and how.

    Attributes:
        matches: whether they can.
        ids: the head's class for each class of the data; None if they are the same.
        note: a sentence that says why not; "" if they match.
        assumed: what is not certain about the match; "" if it is.
        outputs: how many classes the head has, where that is of use.
    """

    matches: bool
    ids: tuple[int, ...] | None = None
    note: str = ""
    assumed: str = ""
    outputs: int | None = None


_LABELS: Mapping[Head, str] = {
    "classes": "classes",
    "flags": "several classes at once",
    "numbers": "numbers",
}


def head_of(raw: RawData, declared: Head | None, match: LabelMatch) -> Head:
    """What the outputs of a head are: what its config says, else what labels that match it are.

    So transformers decides for a config without `problem_type`.
    """
    return declared or (_labels_are(raw) if match.matches else "classes")


def _labels_are(raw: RawData) -> Head:
    if raw.regression:
        return "numbers"
    return "flags" if raw.several else "classes"


def match_labels(
    raw: RawData,
    classes: Sequence[str] | None,
    num_classes: int | None,
    declared: Head | None = None,
) -> LabelMatch:
    """Match by class name if both sides have names, else by number or count."""
    if raw.num_classes is None:
        return _mismatch(raw, "the data set has no labels")
    if num_classes is None:
        return _mismatch(raw, "the model has no classification head")
    given = _labels_are(raw)
    head = declared or given
    if head != given or (head == "numbers" and raw.num_classes != num_classes):
        return _mismatch(
            raw, f"the labels are {_LABELS[given]} and the model has {num_classes} outputs"
            + (" for several classes at once" if head == "flags" else ""),
        )  # fmt: skip
    if head == "numbers":
        return LabelMatch(matches=True)
    names = raw.classes
    if names and num_classes == IMAGENET_CLASSES and all(map(_is_wordnet, names)):
        ids = _wordnet_ids(names)
        if ids is not None:
            return _matched(ids)
    if names and classes:
        ids = match_names(names, classes)
        if ids is not None:
            return replace(_matched(ids), outputs=num_classes)
        return _mismatch(
            raw,
            f"the class names differ ({_few(names)} in the data, {_few(classes)} in the model)",
        )
    if names and all(map(_is_number, names)):
        return _by_number(raw, names, num_classes)
    if raw.num_classes == num_classes:
        if names and len(names) > 1:
            return LabelMatch(
                matches=True,
                assumed=f"the model does not name its {num_classes} classes, so those of the data "
                f"are taken in their order ({_few(names)})",
            )
        return LabelMatch(matches=True)
    return _mismatch(raw, f"the data has {raw.num_classes} classes and the model {num_classes}")


def _by_number(raw: RawData, names: Sequence[str], outputs: int) -> LabelMatch:
    """Names that are whole numbers are the numbers of the head's classes, if they can be all."""
    numbers = [int(name) for name in names]
    if sorted(numbers) == list(range(outputs)):
        return _matched(tuple(numbers))
    return _mismatch(
        raw,
        f"its classes are called {_few(names)} and the model has {outputs} classes without names, "
        f"so nothing says which is which; name them 0 to {outputs - 1}",
    )


def match_names(data: Sequence[str], model: Sequence[str]) -> tuple[int, ...] | None:
    """The index in `model` of every name in `data`, or None where one has no single partner.

    Case is ignored, and spaces, underscores and hyphens are the same. "tench, Tinca tinca" also
    matches either synonym. A name that fits several classes (ImageNet has two cranes) is the one
    at its own position if that is among them.
    """
    whole = _index((_plain(name), place) for place, name in enumerate(model))
    parts = _index((part, place) for place, name in enumerate(model) for part in _synonyms(name))
    ids = []
    for place, name in enumerate(data):
        found = whole.get(_plain(name)) or {
            candidate for part in _synonyms(name) for candidate in parts.get(part, ())
        }
        if place in found:
            ids.append(place)
        elif len(found) == 1:
            ids.append(next(iter(found)))
        else:
            return None
    return tuple(ids) if len(set(ids)) == len(ids) else None


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes in order: by value where all of them are whole numbers, else as text."""
    known = set(names)
    if known and all(map(_is_number, known)):
        return tuple(sorted(known, key=lambda name: (int(name), name)))
    return tuple(sorted(known))


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,18}", name) is not None


def _matched(ids: tuple[int, ...]) -> LabelMatch:
    return LabelMatch(matches=True, ids=None if ids == tuple(range(len(ids))) else ids)


def _mismatch(raw: RawData, why: str) -> LabelMatch:
    return LabelMatch(
        matches=False,
        note=f"The labels of {raw.spec} are not used: {why}; the metrics compare with the dense "
        "model instead.",
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_\-]+", name.strip().casefold()))


def _synonyms(name: str) -> set[str]:
    return {part for part in (_plain(part) for part in name.split(",")) if part}


def _index(pairs: Iterable[tuple[str, int]]) -> Mapping[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, place in pairs:
        found.setdefault(name, set()).add(place)
    return found


def _is_wordnet(name: str) -> bool:
    return re.fullmatch(r"n\d{8}", name) is not None


def _wordnet_ids(names: Sequence[str]) -> tuple[int, ...] | None:
    """The ImageNet-1k class numbers of WordNet ids such as n01440764 (the ids in sorted order)."""
    from timm.data import ImageNetInfo

    places = {name: place for place, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    ids = [places.get(name) for name in names]
    known = tuple(place for place in ids if place is not None)
    return known if len(known) == len(names) else None
