"""Build the dataclasses of a recipe from plain YAML values. Errors name the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from slt_compress.errors import RecipeError


def _build(cls: type[Any], content: Mapping[str, Any], path: str) -> Any:
    """An instance of a dataclass, built from plain mappings and checked by pydantic."""
    try:
        checked = _schema(cls).model_validate(dict(content))
    except ValidationError as error:
        raise RecipeError(_sentence(error, path)) from None
    return _instance(cls, checked)


def _schema(cls: type[Any]) -> type[BaseModel]:
    """A pydantic model with the fields of a dataclass; it refuses unknown keys."""
    hints = get_type_hints(cls)
    definitions: dict[str, Any] = {}
    for entry in fields(cls):
        hint = hints[entry.name]
        if is_dataclass(hint) and isinstance(hint, type):
            hint = _schema(hint)
        elif hint == tuple[str, ...]:
            hint = Annotated[tuple[str, ...], BeforeValidator(_comma_separated)]
        default = ... if entry.default is MISSING else entry.default
        if entry.default_factory is not MISSING:
            definitions[entry.name] = (hint | None, None)
        else:
            definitions[entry.name] = (hint, default)
    config = ConfigDict(extra="forbid", protected_namespaces=())
    schema: type[BaseModel] = create_model(cls.__name__, __config__=config, **definitions)
    return schema


def _instance(cls: type[Any], checked: BaseModel) -> Any:
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name in checked.model_fields_set:
        value = getattr(checked, name)
        if value is None and is_dataclass(hints[name]):
            continue
        values[name] = _instance(hints[name], value) if isinstance(value, BaseModel) else value
    return cls(**values)


def _comma_separated(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


def _sentence(error: ValidationError, path: str) -> str:
    """The first problem with its path, and the number of further ones."""
    problems = error.errors()
    first = problems[0]
    where = ".".join([path] * bool(path) + [str(part) for part in first["loc"]])
    if first["type"] == "extra_forbidden":
        text = f"unknown key {where}"
    else:
        text = f"{where}: {first['msg'].lower()}, not {first['input']!r}"
    more = len(problems) - 1
    return text + (f" (and {more} more)" if more else "")


def _plain(value: Any) -> Any:
    """Tuples as lists and mappings as dicts, for YAML."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
