"""The formats a model can be exported in, and the codecs they are made of: two literal tables."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from slt_compress.artifacts.formats.base import Codec, NmPattern, is_plain, part_key
from slt_compress.artifacts.formats.bitmask import Bitmask
from slt_compress.artifacts.formats.choice import MASK_FORMAT, Format, MaskOnly
from slt_compress.artifacts.formats.coded import Coded
from slt_compress.artifacts.formats.csr import SparseCsr
from slt_compress.artifacts.formats.dense import Dense
from slt_compress.artifacts.formats.entropy import decode_masks, encode_masks
from slt_compress.artifacts.formats.nm import Nm, find_pattern
from slt_compress.artifacts.formats.packed import Packed
from slt_compress.artifacts.formats.permuted import PermutedNm, in_order
from slt_compress.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CODECS",
    "EXPORTS",
    "FORMATS",
    "MASK_FORMAT",
    "VALUES_DTYPES",
    "Bitmask",
    "Codec",
    "Coded",
    "Dense",
    "Format",
    "MaskOnly",
    "Nm",
    "NmPattern",
    "Packed",
    "SparseCsr",
    "decode_masks",
    "encode_masks",
    "find_format",
    "find_pattern",
    "in_order",
    "is_plain",
    "part_key",
]

_DENSE, _CSR, _BITMASK, _NM, _CODED = Dense(), SparseCsr(), Bitmask(), Nm(), Coded()
_PERMUTED_NM = PermutedNm()
_PACKED_DENSE, _PACKED_NM, _PACKED_CODED = (Packed(inner=c) for c in (_DENSE, _NM, _CODED))
# A packed mask is coded: that is never more than a few bytes larger than a bitmask or indices.
_PACKINGS: Mapping[str, Packed] = MappingProxyType(
    {
        "dense": _PACKED_DENSE,
        "nm": _PACKED_NM,
        "bitmask": _PACKED_CODED,
        "sparse-csr": _PACKED_CODED,
        "coded": _PACKED_CODED,
    }
)

CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        "dense": _DENSE,
        "sparse-csr": _CSR,
        "bitmask": _BITMASK,
        "nm": _NM,
        "coded": _CODED,
        "packed-dense": _PACKED_DENSE,
        "packed-nm": _PACKED_NM,
        "packed-coded": _PACKED_CODED,
        "permuted-nm": _PERMUTED_NM,
    }
)

# The keys are literals, because `export --help` reads them from this file without importing it.
FORMATS: Mapping[str, Format | MaskOnly] = MappingProxyType(
    {
        "dense": Format(name="dense", codecs=(_DENSE,)),
        "sparse-csr": Format(name="sparse-csr", codecs=(_CSR,)),
        "bitmask": Format(name="bitmask", codecs=(_BITMASK,)),
        # what has no such pattern is stored as a bitmask
        "nm": Format(name="nm", codecs=(_NM, _PERMUTED_NM, _BITMASK)),
        "coded": Format(name="coded", codecs=(_CODED,)),
        "auto": Format(
            name="auto", codecs=(_DENSE, _NM, _BITMASK, _CSR, _CODED), packings=_PACKINGS
        ),
        "mask": MaskOnly(),
    }
)

# What `export` writes; an ONNX model is no table of stored tensors.
EXPORTS = (*FORMATS, "onnx")

# What kept values can be rounded to in the file.
VALUES_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"bf16": torch.bfloat16, "fp16": torch.float16}
)


def find_format(name: str) -> Format | MaskOnly:
    """Look a format up by its name.

    Raises:
        ArtifactError: there is none of that name.
    """
    if name not in FORMATS:
        raise ArtifactError(f"there is no format {name!r}; the formats are {', '.join(EXPORTS)}")
    return FORMATS[name]
