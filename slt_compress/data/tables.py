"""Tables: one reader for each kind of file, all of which give an Arrow table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as papq

from slt_compress.data.arrow_types import plain_table
from slt_compress.data.csv_tables import read_csv
from slt_compress.data.decoding import read_text
from slt_compress.data.media_paths import with_own_paths
from slt_compress.data.rows import concatenate
from slt_compress.errors import DataError
from slt_compress.storage.memory import is_low_memory
from slt_compress.storage.regular import expect_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def read_tables(paths: Iterable[Path], spec: str) -> pa.Table:
    """The rows of some files, one after the other.

    Raises:
        DataError: a file of another kind or a damaged one, or files with different columns.
    """
    tables = []
    for path in paths:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"{path} is not a data file that can be read; use {', '.join(sorted(READERS))}"
            )
        try:
            expect_regular(path)
            table = plain_table(reader(path))
        except (pa.ArrowException, OSError, ValueError, RecursionError, MemoryError) as error:
            if is_low_memory(error):
                raise DataError(f"there is not enough memory to read {path}") from error
            said = str(error).splitlines() or [type(error).__name__]
            raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {said[0]}") from error
        tables.append(with_own_paths(table, path.parent, spec))
    return concatenate(tables, spec)


def _read_parquet(path: Path) -> pa.Table:
    return papq.read_table(path, partitioning=None)


def _read_json(path: Path) -> pa.Table:
    """Objects one per line, a list of objects or of strings, or columns as lists."""
    text = read_text(path)
    start = text.lstrip()[:1]
    if start == "[":
        return _of_rows(json.loads(text))
    # not splitlines: it also cuts at characters that JSON allows in a string, such as U+2028
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        rows: Any = [json.loads(line) for line in lines]
    except json.JSONDecodeError:
        if start != "{":
            raise
        rows = json.loads(text)  # one object over several lines
    if len(lines) == 1 and isinstance(rows[0], dict) and _is_columns(rows[0]):
        rows = rows[0]
    return pa.table(rows) if isinstance(rows, dict) and _is_columns(rows) else _of_rows(rows)


def _is_columns(value: Mapping[str, Any]) -> bool:
    """Whether an object holds columns: lists of one length that are not the values of one row."""
    columns = list(value.values())
    lists = bool(columns) and all(isinstance(column, list) for column in columns)
    return lists and len({len(column) for column in columns}) == 1


def _of_rows(rows: Any) -> pa.Table:
    if isinstance(rows, dict):
        raise ValueError("it is one JSON object; give one object per line, or a list of objects")
    if rows and all(isinstance(row, str) for row in rows):
        return pa.table({"text": rows})
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    names = {name: None for row in rows for name in row}
    return pa.table({name: _column([row.get(name) for row in rows], name) for name in names})


def _column(values: list[Any], name: str) -> pa.Array:
    try:
        return pa.array(values)
    except pa.ArrowException:
        kinds = sorted({type(value).__name__ for value in values if value is not None})
        if not set(kinds) <= {"str", "int", "float", "bool"}:
            raise ValueError(f"column {name} mixes {', '.join(kinds)}") from None
        return pa.array([None if value is None else str(value) for value in values])


def _read_txt(path: Path) -> pa.Table:
    # Newlines are kept: a language model should see the text as it is. Only newlines end a line,
    # and not the further characters at which `splitlines` cuts.
    lines = read_text(path).split("\n")
    kept = [f"{line}\n" for line in lines[:-1]]
    return pa.table({"text": pa.array([*kept, lines[-1]] if lines[-1] else kept, pa.string())})


READERS: Mapping[str, Callable[[Path], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".txt": _read_txt,
}
