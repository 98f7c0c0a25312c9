"""Arrow's types by kind: the many ways to store text, bytes and lists are one each for us."""

from __future__ import annotations

import pyarrow as pa


def is_text(kind: pa.DataType) -> bool:
    """Whether values are strings, however they are stored."""
    types = pa.types
    return any((types.is_string(kind), types.is_large_string(kind), types.is_string_view(kind)))


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are bytes, however they are stored."""
    types = pa.types
    plain = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(plain or types.is_fixed_size_binary(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, however they are stored."""
    types = pa.types
    plain = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(plain or types.is_list_view(kind) or types.is_large_list_view(kind))


def plain_table(table: pa.Table) -> pa.Table:
    """The table with its encodings undone: dictionaries, runs, extensions and views.

    Columns without any of them are the same objects.
    """
    for index, field in enumerate(table.schema):
        kind = plain_type(field.type)
        if kind != field.type:
            column = _plain_column(table.column(index), kind)
            table = table.set_column(index, field.with_type(kind), column)
    return table


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of an encoded type, also within lists and structs."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if is_list(kind):
        value = plain_type(kind.value_type)
        views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
        return pa.large_list(value) if views or value != kind.value_type else kind
    if pa.types.is_struct(kind):
        fields = [field.with_type(plain_type(field.type)) for field in kind]
        return (
            pa.struct(fields)
            if any(a.type != b.type for a, b in zip(fields, kind, strict=True))
            else kind
        )
    return kind


def _plain_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return column.cast(kind)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # some encodings have no cast
        return pa.chunked_array([pa.array(column.to_pylist(), kind)])
