"""The formats a model can be exported in: one literal table."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from slt_compress.errors import ArtifactError
from slt_compress.formats.base import Format, part_key
from slt_compress.formats.csr import SparseCsr
from slt_compress.formats.dense import Dense

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FORMATS", "Dense", "Format", "SparseCsr", "find_format", "part_key"]

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "dense": Dense(),
        "sparse-csr": SparseCsr(),
    }
)


def find_format(name: str) -> Format:
    """Look a format up by its name.

    Raises:
        ArtifactError: there is none of that name.
    """
    if name not in FORMATS:
        raise ArtifactError(f"there is no format {name!r}; the formats are {', '.join(FORMATS)}")
    return FORMATS[name]
