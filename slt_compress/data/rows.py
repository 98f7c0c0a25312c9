"""Rows: one split of a data set as an Arrow table, with what its columns mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from slt_compress.data.arrow_types import is_binary, is_list, is_text, plain_table
from slt_compress.data.options import STORED
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Kind = str
"""A key of `STORED`, or classes, text, integer, number, words, tags, numbers or other."""
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """What one column holds; `names` are the class names of a `classes` or `tags` column."""

    kind: Kind
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A read-only view of a table: row `i` of the view is row `order[i]` of the table."""

    table: pa.Table
    order: Positions
    features: Mapping[str, Feature]

    def __len__(self) -> int:
        return len(self.order)

    def column(self, name: str, positions: Sequence[int] | Positions | None = None) -> list[Any]:
        """Values of a column at the given rows of the view (all of them by default)."""
        column = self.table.column(name)
        if positions is None and len(self.order) == len(column):
            values: list[Any] = column.to_pylist()
            return [values[i] for i in self.order]
        rows = self.order if positions is None else self.order[np.asarray(positions, np.int64)]
        return [column[int(row)].as_py() for row in rows]

    def select(self, positions: Sequence[int] | Positions) -> Rows:
        """The rows at `positions`, in that order, without a copy of the table."""
        chosen = self.order[np.asarray(positions, np.int64)]
        return Rows(table=self.table, order=chosen, features=self.features)


def as_rows(table: pa.Table) -> Rows:
    """Wrap a table; `features` come from its Hugging Face metadata, else from the Arrow types."""
    table = plain_table(table)
    declared = _declared(table.schema)
    features = {
        field.name: _feature(field.name, field.type, declared.get(field.name))
        for field in table.schema
    }
    return Rows(table=table, order=np.arange(table.num_rows, dtype=np.int64), features=features)


def _declared(schema: pa.Schema) -> Mapping[str, Any]:
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _feature(name: str, arrow: pa.DataType, declared: object) -> Feature:
    said = declared if isinstance(declared, dict) else {}
    names = _names(said)
    if names and pa.types.is_integer(arrow):
        return Feature(kind="classes", names=names)
    if is_list(arrow):
        if pa.types.is_integer(arrow.value_type):
            return Feature(kind="tags", names=_names(said.get("feature")))
        if pa.types.is_floating(arrow.value_type):
            return Feature(kind="numbers")
        return Feature(kind="words" if is_text(arrow.value_type) else "other")
    fields = {field.name for field in arrow} if pa.types.is_struct(arrow) else set()
    stored = _stored(name, said.get("_type"))
    if stored is not None and "bytes" in fields:
        return Feature(kind=stored)
    if is_text(arrow):
        return Feature(kind="text")
    if pa.types.is_integer(arrow) or pa.types.is_boolean(arrow):
        return Feature(kind="integer")
    if pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return Feature(kind="number")
    if stored is not None and "_type" in said and is_binary(arrow):
        return Feature(kind=stored)
    return Feature(kind="other")


def _stored(name: str, declared: object) -> Kind | None:
    """The kind of media in a column: as declared, else by its name, else the first kind."""
    if declared is None:
        named = (kind for kind, stored in STORED.items() if name in stored.names)
        return next(named, next(iter(STORED)))
    return next((kind for kind, stored in STORED.items() if stored.declared == declared), None)


def _names(said: object) -> tuple[str, ...] | None:
    """The class names of a declared ClassLabel."""
    if not isinstance(said, dict) or said.get("_type") != "ClassLabel":
        return None
    names = said.get("names")
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def concatenate(tables: Sequence[pa.Table], spec: str) -> pa.Table:
    """One table from the shards of a split; the first shard's metadata stands for all."""
    try:
        return pa.concat_tables(tables, promote_options="permissive").replace_schema_metadata(
            tables[0].schema.metadata
        )
    except pa.ArrowException as error:
        raise DataError(f"{spec}: the files of one split differ in their columns") from error
