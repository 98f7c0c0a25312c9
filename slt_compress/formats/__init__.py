"""The formats a model can be exported in: one literal table."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from slt_compress.errors import ArtifactError
from slt_compress.formats.base import Format, part_key
from slt_compress.formats.csr import SparseCsr
from slt_compress.formats.dense import Dense

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

__all__ = ["FORMATS", "Dense", "Format", "SparseCsr", "find_format", "model_nbytes", "part_key"]

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


def model_nbytes(
    chosen: Format, dense_nbytes: int, sites: Sequence[tuple[tuple[int, ...], int, torch.dtype]]
) -> int:
    """Bytes of all tensors of a model in a format, headers aside.

    `dense_nbytes` is of all its tensors stored whole; `sites` are shape, kept count and dtype.
    """
    whole = sum(FORMATS["dense"].nbytes(*site) for site in sites)
    return dense_nbytes - whole + sum(chosen.nbytes(*site) for site in sites)
