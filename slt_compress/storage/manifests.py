"""Manifests: the versioned JSON object that describes a folder, read without trusting it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from slt_compress.errors import SltError
from slt_compress.storage.files import sha256_file

VERSION_LIMIT = 10**6
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest whose kind and version were checked.

    Attributes:
        values: the JSON object.
        where: its file, for messages.
        error: what to raise when a value is not what it should be.
    """

    values: Mapping[str, object]
    where: Path
    error: type[SltError]

    def object(self, key: str) -> dict[str, Any]:
        """Return the JSON object under a key; anything else is an error."""
        value: dict[str, Any] = self._typed(key, dict)
        return value

    def text(self, key: str) -> str:
        """Return the string under a key; anything else is an error."""
        value: str = self._typed(key, str)
        return value

    def integer(self, key: str) -> int:
        """Return the integer under a key; anything else is an error."""
        value: int = self._typed(key, int)
        return value

    def names(self, key: str) -> list[str]:
        """Return the list of distinct strings under a key; anything else is an error."""
        names: list[str] = self._typed(key, list)
        if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
            raise self.damaged(f"{key!r} is not a list of distinct names")
        return names

    def optional(self, key: str, kind: type[_T]) -> _T | None:
        """Return the value of a type under a key, or None for a null or no key."""
        value = self.values.get(key)
        if value is None or (isinstance(value, kind) and not isinstance(value, bool)):
            return value
        raise self.damaged(f"{key!r} is a {type(value).__name__} instead of a {kind.__name__}")

    def _typed(self, key: str, kind: type) -> Any:
        value = self.values.get(key)
        if not isinstance(value, kind):
            raise self.damaged(f"{key!r} is a {type(value).__name__} instead of a {kind.__name__}")
        return value

    def checked_file(self, name: str) -> Path:
        """Return the path of a file beside the manifest after comparing its hash with `files`.

        Raises:
            SltError: the file is not listed, missing, or not the one that was written.
        """
        expected = self.object("files").get(name)
        if expected is None:
            raise self.error(f"{self.where.parent} has no {name}; it was written without one")
        if not is_file_name(name):
            raise self.damaged(f"it lists {name!r}, which is not a plain file name")
        path = self.where.parent / name
        if not path.is_file():
            raise self.error(f"{path} is missing; copy the folder again")
        if sha256_file(path) != expected:
            raise self.error(f"{path} was changed or damaged: its hash differs from the manifest's")
        return path

    def damaged(self, what: str) -> SltError:
        """Make the error for a manifest that contradicts itself or the format."""
        return self.error(f"{self.where} is damaged: {' '.join(what.split())}")


def check_manifest(
    values: Mapping[str, object], where: Path, kind: tuple[str, int], error: type[SltError]
) -> Manifest:
    """Check the kind of a manifest, given as its `kind` value and the newest version known here.

    Raises:
        error: it is of another kind, or from a newer version.
    """
    name, newest = kind
    if values.get("kind") != name:
        raise error(f"{where} is not the manifest of a {name}")
    version = values.get("version")
    if type(version) is not int or not 1 <= version <= VERSION_LIMIT:
        raise error(f"{where} is damaged: its version is {str(version)[:20]!r}")
    if version > newest:
        raise error(
            f"{where.parent} was written by a newer slt-compress (format {version}; this one reads"
            f" up to {newest}); upgrade slt-compress"
        )
    return Manifest(values=values, where=where, error=error)


def is_file_name(name: str) -> bool:
    """Whether a name stays in its folder: no separator, no drive, no parent, not hidden."""
    return bool(name) and name[0] != "." and not any(sign in name for sign in "/\\:\0")


def as_shape(value: object) -> tuple[int, ...] | None:
    """Return a JSON list of at most 16 sizes as a shape; None for anything else."""
    if not isinstance(value, list) or len(value) > 16:
        return None
    sizes = tuple(size for size in value if type(size) is int and 0 <= size < 2**48)
    return sizes if len(sizes) == len(value) else None


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number that a float can hold; inf and NaN are not."""
    # compared, as `math.isfinite` raises for an integer that is too large
    return is_number(value) and -sys.float_info.max <= value <= sys.float_info.max


def is_count(value: object, least: int = 1) -> TypeGuard[int]:
    """Whether a JSON value is an integer of at least `least`."""
    return type(value) is int and value >= least
