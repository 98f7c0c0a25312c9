"""Targets: what the label column of a data set holds, and its labels as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slt_compress.data.labels import sorted_names
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slt_compress.data.columns import Columns
    from slt_compress.data.rows import Rows

Labels = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the labels are.

    Attributes:
        classes: names of the classes, None if they have none.
        num_classes: how many classes or, with `regression`, numbers; None without labels.
        regression: whether labels are numbers to predict.
        several: whether a row has several classes, or several numbers, at once.
        note: what is wrong with the labels, a sentence; "" if nothing.
    """

    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    regression: bool = False
    several: bool = False
    note: str = ""


def find_target(rows: Rows, columns: Columns, spec: str) -> Target:
    """What the label column of the training split holds.

    Class names are those of the data's own metadata, else the distinct strings in order. A column
    without any value is none.

    Raises:
        DataError: a label column whose values are neither classes nor numbers.
    """
    label = columns.label
    if label is None:
        return Target()
    feature = rows.features[label]
    if feature.kind == "classes" and feature.names:
        return Target(classes=feature.names, num_classes=len(feature.names))
    known = [value for value in rows.column(label) if not is_missing(value)]
    if not known:
        return Target(note=f"{spec}: the label column {label} is empty, so there are no labels.")
    if columns.tags:
        return _flat(feature.names, (tag for row in known for tag in row), label, spec)
    if feature.kind in ("tags", "words", "numbers"):
        return _several(known, feature.names, label, spec)
    if feature.kind == "number":
        return Target(num_classes=1, regression=True)
    return _flat(None, known, label, spec)


def is_missing(value: object) -> bool:
    """Whether a label is not given: null, NaN or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _flat(names: tuple[str, ...] | None, values: Iterable[Any], label: str, spec: str) -> Target:
    """One class for each row, or for each word."""
    known = [value for value in values if not is_missing(value)]
    if names:
        return Target(classes=names, num_classes=len(names))
    if known and all(isinstance(value, str) for value in known):
        classes = sorted_names(known)
        if len(classes) > max(1_000, len(known) // 2):
            raise DataError(
                f"{spec}: the label column {label} holds {len(classes):,} different strings in "
                f"{len(known):,} rows, which are not classes; name another with data.label=COLUMN"
            )
        return Target(classes=classes, num_classes=len(classes))
    if known and all(isinstance(value, int) for value in known):
        classes_given = [int(value) for value in known if int(value) >= 0]
        if classes_given and max(classes_given) < 1_000_000:
            return Target(num_classes=max(classes_given) + 1)
    raise DataError(
        f"{spec}: the label column {label} holds no class numbers; name another with "
        "--set data.label=COLUMN"
    )


def _several(
    known: Sequence[list[Any]], names: tuple[str, ...] | None, label: str, spec: str
) -> Target:
    """Lists: as many flags or numbers in each row, or the classes of the row."""
    values = [value for row in known for value in row if value is not None]
    widths = {len(row) for row in known}
    flags = len(widths) == 1 and set(values) <= {0, 1} and widths != {1}
    if flags and not any(isinstance(value, str) for value in values):
        count = widths.pop()
        fits = names is not None and len(names) == count
        return Target(classes=names if fits else None, num_classes=count, several=True)
    if any(isinstance(value, float) for value in values):
        if len(widths) != 1:
            raise DataError(
                f"{spec}: the label column {label} holds lists of {min(widths)} to {max(widths)} "
                "numbers; give as many in every row"
            )
        return Target(num_classes=widths.pop(), regression=True, several=True)
    one = _flat(names, values, label, spec)
    return Target(classes=one.classes, num_classes=one.num_classes, several=True)


def read_labels(rows: Rows, columns: Columns, target: Target, spec: str) -> Labels | None:
    """The labels of a split; None for tags and where there are none.

    int64 [N] class numbers (-1 = none given), float32 [N] numbers, or float32 [N, C] flags or
    numbers (NaN = none given).

    Raises:
        DataError: a class that the training split does not have.
    """
    label = columns.label
    if label is None or target.num_classes is None or columns.tags or label not in rows.features:
        return None
    values = [None if is_missing(value) else value for value in rows.column(label)]
    if target.several:
        return _rows_of_several(values, target, label, spec)
    if target.regression:
        return np.array([np.nan if v is None else v for v in values], np.float32)
    numbered = [-1 if v is None else _number(v, target, label, spec) for v in values]
    return np.array(numbered, np.int64)


def _rows_of_several(
    values: Sequence[list[Any] | None], target: Target, label: str, spec: str
) -> npt.NDArray[np.float32]:
    count = target.num_classes or 0
    out = np.full((len(values), count), np.nan, np.float32)
    flags = all(
        row is None or (len(row) == count and set(row) <= {0, 1, None}) for row in values
    )  # fmt: skip
    for place, row in enumerate(values):
        if row is None:
            continue
        if target.regression or flags:
            if len(row) != count:
                raise DataError(
                    f"{spec}: a row of column {label} holds {len(row)} numbers, not {count}"
                )
            out[place] = [np.nan if value is None else value for value in row]
        else:
            out[place] = 0.0
            for value in row:
                if not is_missing(value):
                    out[place, _number(value, target, label, spec)] = 1.0
    return out


def _number(value: Any, target: Target, label: str, spec: str) -> int:
    """The number of a class that is given by name or by number."""
    if isinstance(value, str) and target.classes:
        if value not in target.classes:
            raise DataError(
                f"{spec}: label {value!r} in column {label} is none of the training split's "
                f"{len(target.classes)} classes"
            )
        return target.classes.index(value)
    if target.num_classes is not None and int(value) >= target.num_classes:
        raise DataError(
            f"{spec}: label {int(value)} in column {label} is beyond the training split's "
            f"{target.num_classes} classes"
        )
    return int(value)


def given_labels(labels: Labels) -> npt.NDArray[np.bool_]:
    """Which rows have a label, bool [N]."""
    given = np.isfinite(labels) if labels.dtype == np.float32 else labels >= 0
    return np.asarray(given.all(axis=1) if labels.ndim > 1 else given, np.bool_)
