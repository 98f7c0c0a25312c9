"""Overrides: later sources override earlier ones, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from slt_compress.errors import RecipeError


def with_assignment(content: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """`content` overridden by one `KEY=VALUE`; KEY is a dotted path, VALUE is YAML.

    Raises:
        RecipeError: there is no `=`, or the path has an empty part.
    """
    key, separator, text = assignment.partition("=")
    if not separator or not all(key.split(".")):
        raise RecipeError(f"--set takes KEY=VALUE, such as data.label=coarse, not {assignment!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return with_key(content, key, value)


def with_key(content: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`content` overridden at one dotted path."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return merged(content, value)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overridden by `over`, section by section.

    Another method's options do not survive: they say nothing about the method in `over`.
    """
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if key in ("method", "objective") and isinstance(below, str):
            below = {"name": below}
        if key == "method" and _is_another_method(below, value):
            below = None
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            value = merged(below, value)
        result[key] = value
    return result


def _is_another_method(below: Any, value: Any) -> bool:
    if not isinstance(below, Mapping) or not isinstance(value, Mapping) or "name" not in value:
        return False
    return bool(below.get("name", "relaxed") != value["name"])
