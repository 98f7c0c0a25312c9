"""The JSON Schemas in docs/schemas, and a check of JSON against the part of the standard they use.

python -m tests.cli.schemas FILE.json KIND     # or as a library, from the tests
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"
_KINDS = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
}  # fmt: skip
_USED = {
    "$schema", "$id", "title", "description", "type", "required", "properties", "items",
    "additionalProperties", "enum", "const", "minimum", "maximum",
}  # fmt: skip


def schema_of(name: str) -> dict[str, Any]:
    """The schema with a name such as `report-1`."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def problems(value: Any, schema: dict[str, Any], at: str = "$") -> list[str]:
    """What is wrong about a value; empty where it fits."""
    return list(_problems(value, schema, at))


def _problems(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
    assert set(schema) <= _USED, set(schema) - _USED
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{at} is a {type(value).__name__}, not {kinds}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at} is {value!r}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is {value!r}, none of {schema['enum']}"
    if _is(value, "number") and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        yield f"{at} is {value}, out of range"
    if isinstance(value, dict):
        for key in schema.get("required", []):
            if key not in value:
                yield f"{at} lacks {key}"
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        for key, entry in value.items():
            if key in known:
                yield from _problems(entry, known[key], f"{at}.{key}")
            elif others is False:
                yield f"{at} has {key}"
            else:
                yield from _problems(entry, others, f"{at}.{key}")
    if isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _problems(entry, schema.get("items", {}), f"{at}[{index}]")


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, _KINDS[kind])
