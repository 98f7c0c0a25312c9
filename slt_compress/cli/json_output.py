"""JSON on stdout, as every command with `--json` prints it."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(content: Any) -> None:
    """Print with sorted keys; numbers that JSON does not have, inf and nan, become null."""
    print(json.dumps(_finite(content), indent=2, sort_keys=True, allow_nan=False))


def _finite(value: Any) -> Any:
    """The same with null for inf and nan."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
