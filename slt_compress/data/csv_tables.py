"""CSV: delimiters and types are found in the file itself."""

from __future__ import annotations

import csv
import io
from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from slt_compress.data.decoding import read_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLED = 50


def read_csv(path: Path) -> pa.Table:
    """A table with the names of the first row, and the types that all values of a column have.

    Columns are whole numbers, numbers, booleans or strings: dates stay strings, and so do "NA" and
    "null", which may be a class or a text. Only an empty number is missing. A name that comes
    twice gets a number at its end, as in pandas.

    Raises:
        ValueError, pyarrow.ArrowException: the file is not a table; says where.
    """
    text = read_text(path, newlines=False)
    tab = path.suffix.lower() == ".tsv"
    delimiter = _delimiter(text, ("\t", *_DELIMITERS) if tab else _DELIMITERS)
    header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    if not header:
        raise ValueError("it is empty")
    strings = {f"f{i}": pa.string() for i in range(len(header))}
    table = pacsv.read_csv(
        io.BytesIO(text.encode()),
        read_options=pacsv.ReadOptions(autogenerate_column_names=True, use_threads=False),
        parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=delimiter != "\t"),
        convert_options=pacsv.ConvertOptions(column_types=strings, strings_can_be_null=False),
    )
    rows = table.slice(1)
    names = _unique([name or f"Unnamed: {i}" for i, name in enumerate(header)])
    return pa.table({name: _typed(rows.column(i)) for i, name in enumerate(names)})


def _delimiter(text: str, candidates: Sequence[str]) -> str:
    """The first delimiter that cuts the header and the first rows into as many fields, over one."""
    for delimiter in candidates:
        sample = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            widths = {len(row) for row in islice(sample, _SAMPLED) if row}
        except csv.Error:
            continue
        if len(widths) == 1 and widths != {1}:
            return delimiter
    return candidates[0]


def _unique(names: Sequence[str]) -> list[str]:
    taken: dict[str, None] = {}
    for name in names:
        other, count = name, 0
        while other in taken:
            count += 1
            other = f"{name}.{count}"
        taken[other] = None
    return list(taken)


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of strings as the narrowest type that holds all its values."""
    trimmed = pc.utf8_trim_whitespace(column)
    given = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)
    if given.null_count == len(given):
        return column
    for kind in (pa.int64(), pa.float64()):
        try:
            return pc.cast(given, kind)
        except pa.ArrowInvalid:
            continue
    words = pc.utf8_lower(given)
    if pc.all(pc.is_in(words.drop_null(), pa.array(["true", "false"]))).as_py():
        return pc.equal(words, "true")
    return column
