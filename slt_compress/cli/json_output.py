"""JSON on stdout, as every command with `--json` prints it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from slt_compress.cli.plain_lines import write

# The version of each kind of output. It goes up where a key changes its meaning or goes away;
# docs/schemas holds a JSON Schema for each.
SCHEMAS: Mapping[str, int] = MappingProxyType({
    "artifact": 1, "audit": 1, "bench": 1, "comparison": 1, "difference": 1,
    "doctor": 1, "error": 1, "evaluation": 1, "event": 1, "page": 1, "plan": 1, "report": 1,
    "search": 1, "tickets": 1, "verification": 1,
})  # fmt: skip


def print_json(content: Mapping[str, Any], kind: str) -> None:
    """Print with sorted keys and a `schema`; inf and nan, which JSON does not have, become null."""
    whole = {**content, "schema": schema_of(kind)}
    write(json.dumps(_finite(whole), indent=2, sort_keys=True, allow_nan=False) + "\n")


def print_json_line(content: Mapping[str, Any], kind: str) -> None:
    """Print one line of JSON on stderr, for whoever follows a command while it runs."""
    whole = {"schema": schema_of(kind), **content}
    print(json.dumps(_finite(whole), allow_nan=False), file=sys.stderr, flush=True)


def schema_of(kind: str) -> str:
    """The name and version of a kind of output, such as `report-1`."""
    return f"{kind}-{SCHEMAS[kind]}"


def _finite(value: Any) -> Any:
    """The same with null for inf and nan."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
