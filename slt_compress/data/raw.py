"""Open a data set before any model is known: find its splits, columns and classes."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from slt_compress.data.batches import generator
from slt_compress.data.columns import Columns, find_columns
from slt_compress.data.discovery import split_in
from slt_compress.data.targets import (
    Labels,
    Target,
    find_target,
    given_labels,
    is_missing,
    read_labels,
)
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slt_compress.data.options import DataOptions
    from slt_compress.data.rows import Positions, Rows

IMAGE_DEFAULT = "timm/mini-imagenet"
TEXT_DEFAULT = "Salesforce/wikitext:wikitext-2-raw-v1"
SPLIT_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows with their labels: int64 [N] classes, float32 [N] numbers, or None."""

    rows: Rows = field(repr=False)
    labels: Labels | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, positions: Positions) -> Split:
        """The rows at `positions`, in that order."""
        labels = None if self.labels is None else self.labels[positions]
        return Split(rows=self.rows.select(positions), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawData:
    """A data set as it came: rows and labels, nothing preprocessed.

    Attributes:
        spec: the data set as the user named it.
        classes: names of the classes, None where the data has none.
        num_classes: how many; 1 for regression, None where there are no labels.
        regression: whether labels are numbers to predict.
        several: whether a row has several classes or numbers at once.
        modality: what the inputs are.
        columns: which columns are used.
        splits: "train" and "test" (held-out examples are cut from train by `prepare`, since for
            language models they are blocks of text and not rows).
        test_split: where "test" comes from.
        notes: what was decided without being asked, a sentence each.
    """

    spec: str
    classes: tuple[str, ...] | None
    num_classes: int | None
    regression: bool
    modality: str
    columns: Columns
    splits: Mapping[str, Split]
    test_split: str
    options: DataOptions
    notes: tuple[str, ...] = ()
    several: bool = False


def open_data(spec: str, options: DataOptions) -> RawData:
    """Open `digits`, a local path or a hub id (`name` or `name:config`).

    Raises:
        DataError: not found, not reached, not readable, or without the splits and columns asked.
    """
    named, notes = _read(spec, options)
    first = _train_name(named, options, spec)
    columns = find_columns(named[first], options, spec)
    target = find_target(named[first], columns, spec)
    train = _split(named[first], columns, target, spec)
    if not len(train):
        raise DataError(f"{spec}: the split {first} has no labelled rows")
    name = _test_name(named, first, options, columns, spec)
    if name is not None:
        test, test_name = _split(named[name], columns, target, spec), name
    else:
        train, test = _cut(train, spec, in_order=columns.modality == "text")
        test_name = f"{SPLIT_SHARE:.0%} of {first}"
        notes += (f"{spec} has no labelled test split: {test_name} is held back for the metrics.",)
    unlabelled = len(named[first]) - sum(map(len, (train, test) if name is None else (train,)))
    if unlabelled:
        notes += (
            f"{spec}: {unlabelled:,} of {len(named[first]):,} rows of the split {first} have no "
            "label and are left out.",
        )
    return RawData(
        spec=spec,
        classes=target.classes,
        num_classes=target.num_classes,
        regression=target.regression,
        modality=columns.modality,
        columns=columns,
        splits={"train": train, "test": test},
        test_split=test_name,
        options=options,
        notes=(*notes, *filter(None, (target.note,))),
        several=target.several,
    )


def _read(spec: str, options: DataOptions) -> tuple[dict[str, Rows], tuple[str, ...]]:
    # not before there is data to read: they bring pyarrow, which a plan does without
    from slt_compress.data.hub import is_saved, read_hub, read_saved
    from slt_compress.data.local import read_path

    path = Path(spec).expanduser()
    if path.exists():
        return (read_saved(path, spec), ()) if is_saved(path) else read_path(path, spec)
    if spec == "digits":
        with as_file(files("slt_compress") / "digits") as folder:
            return read_path(folder, spec)
    if (
        spec.startswith((".", "/", "~"))
        or spec.count("/") > 1
        or "\\" in spec
        or path.suffix in {".parquet", ".csv", ".tsv", ".json", ".jsonl", ".txt"}
    ):
        raise DataError(f"there is no file or folder {spec}")
    return read_hub(spec, options, stream=spec == IMAGE_DEFAULT)


def _train_name(named: Mapping[str, Rows], options: DataOptions, spec: str) -> str:
    spelled = [name for name in named if split_in(name) == "train"]
    name = options.train or ("train" if "train" in named else next(iter(spelled), "train"))
    if name not in named:
        raise DataError(
            f"{spec} has no split {name!r}; it has {', '.join(sorted(named))}; choose the one to "
            "search on with --set data.train=SPLIT"
        )
    return name


def _test_name(
    named: Mapping[str, Rows], train: str, options: DataOptions, columns: Columns, spec: str
) -> str | None:
    """The first usable of test, validation; unlabelled ones (GLUE's test) are passed over."""
    if options.test:
        if options.test not in named or options.test == train:
            rest = ", ".join(sorted(set(named) - {train})) or "no other split"
            raise DataError(
                f"{spec}: data.test={options.test} cannot be measured on (searching on {train}); "
                f"it has {rest}"
            )
        return options.test
    order = ["test", "validation"]
    order += [name for kind in order for name in sorted(named) if split_in(name) == kind]
    usable = (name for name in order if name in named and name != train)
    return next((name for name in usable if _labelled(named[name], columns)), None)


def _labelled(rows: Rows, columns: Columns) -> bool:
    if columns.label is None:
        return len(rows) > 0
    if columns.label not in rows.features:
        return False
    return any(not is_missing(value) and value != -1 for value in rows.column(columns.label))


def _split(rows: Rows, columns: Columns, target: Target, spec: str) -> Split:
    """Rows with labels; rows whose label is missing (null, -1) are left out."""
    missing = [name for name in columns.inputs if name not in rows.features]
    if missing:
        raise DataError(f"{spec}: the splits differ: one has no column {missing[0]!r}")
    labels = read_labels(rows, columns, target, spec)
    if labels is None:
        return Split(rows=rows, labels=None)
    return Split(rows=rows, labels=labels).select(np.flatnonzero(given_labels(labels)))


def _cut(train: Split, spec: str, *, in_order: bool) -> tuple[Split, Split]:
    """80 % and 20 % of the rows: by a fixed seed, or the last ones of a text without labels."""
    if len(train) < 2:
        raise DataError(f"{spec} has one row, which cannot be split into training and test data")
    count = max(1, round(SPLIT_SHARE * len(train)))
    order = np.arange(len(train))[::-1]
    if train.labels is not None or not in_order:
        order = torch.randperm(len(train), generator=generator("test")).numpy()
    return train.select(np.sort(order[count:])), train.select(np.sort(order[:count]))
