"""Paths of images and sounds inside a table: only of files under the table's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from slt_compress.errors import DataError

_FIELDS = {"bytes", "path"}


def with_own_paths(table: pa.Table, folder: Path, spec: str) -> pa.Table:
    """The table with absolute paths where it stores images or sounds by path and not by bytes.

    Raises:
        DataError: a path leads out of the folder of the table, or to no regular file.
    """
    for index, column in enumerate(table.schema):
        names = {field.name for field in column.type} if pa.types.is_struct(column.type) else set()
        if not names >= _FIELDS:
            continue
        entries = table.column(index)
        absent = pc.is_null(pc.struct_field(entries, "bytes"))
        if not pc.any(pc.and_(absent, pc.is_valid(entries))).as_py():
            continue
        values = [_resolved(value, folder, spec) for value in entries.to_pylist()]
        table = table.set_column(index, column, pa.chunked_array([pa.array(values, column.type)]))
    return table


def _resolved(value: dict[str, Any] | None, folder: Path, spec: str) -> dict[str, Any] | None:
    if value is None or value.get("bytes") is not None or not value.get("path"):
        return value
    path = (folder / str(value["path"])).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise DataError(
            f"{spec} names the file {str(value['path'])[:80]!r}, which is outside of its own "
            f"folder {folder}: copy it there, or store its bytes in the table"
        )
    if not path.is_file():
        raise DataError(f"{spec} names the file {str(value['path'])[:80]!r}, which is not there")
    return {**value, "path": str(path)}
