"""Folders of images or sounds: classes from their folders, or columns from a metadata table.

As the plain builders of `datasets` read them, except that a folder of a split is never a class.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from slt_compress.checkpoints.companions import is_own_file
from slt_compress.data.labels import sorted_names
from slt_compress.data.options import STORED
from slt_compress.data.rows import Rows, as_rows
from slt_compress.data.tables import read_tables
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slt_compress.data.discovery import Listing

_STORED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def read_media(listing: Listing, spec: str) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Splits of a folder of media files, with notes on what was decided.

    Raises:
        DataError: a metadata table that is damaged or names files outside its folder.
    """
    if any(listing.metadata.values()):
        return _with_metadata(listing, spec)
    names, note = _classes(listing, spec)
    numbers = {name: number for number, name in enumerate(names)}
    splits = {}
    for split, paths in listing.splits.items():
        labels = [numbers[path.parent.name] for path in paths] if names else None
        splits[split] = _rows(listing.kind, paths, labels, names)
    return splits, (note,) if note else ()


def _classes(listing: Listing, spec: str) -> tuple[tuple[str, ...], str]:
    """The classes by the names of the folders; none, with a note, where these are no classes."""
    from slt_compress.data.discovery import split_in

    paths = [path for files in listing.splits.values() for path in files]
    parts = {path: path.relative_to(listing.root).parts[:-1] for path in paths}
    split_roots = {
        path for path in paths
        if not parts[path] or (len(listing.splits) > 1 and split_in(parts[path][-1]))
    }  # fmt: skip
    names = {path.parent.name for path in paths if path not in split_roots}
    depths = Counter(len(parts[path]) for path in paths)
    if not names or len(split_roots) == len(paths):
        return (), f"{spec}: the {listing.kind} files lie in no class folders: there are no labels."
    if len(depths) > 1:
        return (), _uneven(listing, parts, depths, spec)
    if len(names) == 1:
        only = next(iter(names))
        return (), (
            f"{spec}: all {len(paths):,} {listing.kind} files lie in one class folder ({only}): "
            "there are no labels."
        )
    return sorted_names(names), ""


def _uneven(
    listing: Listing,
    parts: Mapping[Path, tuple[str, ...]],
    depths: Mapping[int, int],
    spec: str,
) -> str:
    """Why folders at different depths give no classes, with an example of each depth."""
    usual = max(depths, key=lambda depth: depths[depth])
    odd = [path for path in parts if len(parts[path]) != usual]
    folders = Counter(str(path.parent.relative_to(listing.root)) for path in odd)
    listed = ", ".join(f"{count} in {folder}" for folder, count in folders.most_common(5))
    return (
        f"{spec}: {len(odd):,} of {len(parts):,} {listing.kind} files lie at another depth than "
        f"the others ({listed}), so the folders are no classes and there are no labels; move them "
        "into class folders beside the others, or out of the way."
    )


def _rows(
    kind: str, paths: Sequence[Path], labels: Sequence[int] | None, names: tuple[str, ...]
) -> Rows:
    stored = pa.array([{"bytes": None, "path": str(path)} for path in paths], _STORED)
    columns: dict[str, Any] = {kind: stored}
    features: dict[str, Any] = {kind: {"_type": STORED[kind].declared}}
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int64())
        features["label"] = {"_type": "ClassLabel", "names": list(names)}
    return as_rows(_declare(pa.table(columns), features))


def _declare(table: pa.Table, features: Mapping[str, Any]) -> pa.Table:
    said = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": said})


def _with_metadata(listing: Listing, spec: str) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The rows of the metadata tables, with the files that they name; other files are left out."""
    splits, named, notes = {}, set[str](), []
    for split, tables in listing.metadata.items():
        parts = [_linked(read_tables([table], spec), table, listing, spec) for table in tables]
        if parts:
            whole = pa.concat_tables(parts, promote_options="permissive")
            splits[split] = as_rows(
                _declare(whole, {listing.kind: {"_type": STORED[listing.kind].declared}})
            )
            named |= {row["path"] for row in whole.column(listing.kind).to_pylist() if row}
    files = {str(path) for paths in listing.splits.values() for path in paths}
    unnamed = len(files - named)
    if unnamed:
        notes.append(
            f"{spec}: {unnamed:,} {listing.kind} files are left out: no metadata table names them."
        )
    return splits, tuple(notes)


def _linked(table: pa.Table, path: Path, listing: Listing, spec: str) -> pa.Table:
    """A metadata table with a column of files in place of their names."""
    kind = listing.kind
    column = next((n for n in ("file_name", f"{kind}_file_name") if n in table.column_names), None)
    if column is None:
        raise DataError(
            f"{spec}: {path.name} has no column file_name that says which file a row is about; "
            f"its columns are {', '.join(table.column_names)}"
        )
    names = table.column(column).to_pylist()
    stored = [
        None if name is None else {"bytes": None, "path": _inside(path, name, listing.root, spec)}
        for name in names
    ]
    index = table.column_names.index(column)
    return table.set_column(index, kind, pa.array(stored, _STORED))


def _inside(table: Path, name: object, root: Path, spec: str) -> str:
    """The file of this name in the folder of a table, and nowhere else, be it through a link."""
    relative = os.path.normpath(str(name)).replace("\\", "/")
    if "://" in str(name) or os.path.isabs(relative) or relative.split("/")[0] == "..":
        raise DataError(
            f"{spec}: {table.name} names the file {str(name)[:80]!r}, not one inside its folder"
        )
    file = table.parent / relative
    if file.is_file() and not is_own_file(file, root):
        raise DataError(
            f"{spec}: {table.name} names the file {str(name)[:80]!r}, a link that leaves the "
            "folder: copy the file there"
        )
    return str(file)
