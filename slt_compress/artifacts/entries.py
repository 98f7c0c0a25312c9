"""Entries: what the manifest of an artifact says of each stored tensor, checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slt_compress.artifacts.formats import CODECS, MASK_FORMAT
from slt_compress.errors import ArtifactError
from slt_compress.storage.files import dtype_name
from slt_compress.storage.manifests import Manifest, as_shape, is_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of the model.

    Attributes:
        format: the name of the codec, or `mask`.
        shape, dtype: of the tensor in the model.
        kept: how many weights the mask of a site keeps; None for a tensor that is not a site.
        flips: how many of them have their sign flipped, in the format `mask`.
        values: the narrower dtype that kept weights are stored in; None for `dtype`.
        initializer: the name of the tensor in an ONNX model.
        nonzero: how many elements of it are not +0 there.
    """

    format: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    kept: int | None = None
    flips: int | None = None
    values: torch.dtype | None = None
    initializer: str | None = None
    nonzero: int | None = None

    @classmethod
    def whole(cls, tensor: Tensor, **facts: Any) -> Entry:
        """The entry of a tensor that is stored as it is, with further facts."""
        return cls(format="dense", shape=tuple(tensor.shape), dtype=tensor.dtype, **facts)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the values in the file."""
        return self.dtype if self.values is None else self.values

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, without what the entry does not have."""
        facts = {
            "kept": self.kept, "flips": self.flips, "initializer": self.initializer,
            "nonzero": self.nonzero,
            "values": None if self.values is None else dtype_name(self.values),
        }  # fmt: skip
        known = {name: value for name, value in facts.items() if value is not None}
        shape, dtype = list(self.shape), dtype_name(self.dtype)
        return {"format": self.format, "shape": shape, "dtype": dtype, **known}


def entry_dicts(entries: Mapping[str, Entry]) -> dict[str, dict[str, Any]]:
    """Entries as a manifest holds them."""
    return {name: entry.to_dict() for name, entry in entries.items()}


def parse_entries(manifest: Manifest, format: str) -> dict[str, Entry]:
    """The entries of an artifact in a format, by name.

    Raises:
        ArtifactError: an entry is damaged, or stored by a codec that this version lacks.
    """
    codecs = (MASK_FORMAT,) if format == MASK_FORMAT else tuple(CODECS)
    entries: dict[str, Entry] = {}
    for name, record in manifest.object("entries").items():
        entry = _parse(record, codecs) if isinstance(record, dict) else None
        if entry is None:
            codec = record.get("format") if isinstance(record, dict) else None
            if isinstance(codec, str) and codec not in (*CODECS, MASK_FORMAT):
                raise ArtifactError(
                    f"{manifest.where.parent} stores {name} by the codec {codec[:40]!r}, which "
                    "this slt-compress lacks; upgrade"
                )
            raise manifest.damaged(f"the entry of {name} is {str(record)[:80]}")
        entries[name] = entry
    return entries


def _parse(record: Mapping[str, object], codecs: tuple[str, ...]) -> Entry | None:
    """The entry that a JSON object describes; None where it is not one."""
    format, shape = record.get("format"), as_shape(record.get("shape"))
    dtype, initializer = dtype_named(record.get("dtype")), record.get("initializer")
    values = dtype_named(record["values"]) if "values" in record else None
    counts = {key: record.get(key) for key in ("kept", "flips", "nonzero") if key in record}
    if (
        shape is None
        or dtype is None
        or not isinstance(format, str)
        or format not in codecs
        or (values is None and "values" in record)
        or not all(is_count(count, least=0) for count in counts.values())
    ):
        return None
    return Entry(
        format=format, shape=shape, dtype=dtype, values=values,
        initializer=initializer if isinstance(initializer, str) else None,
        **{key: count for key, count in counts.items() if is_count(count, least=0)},
    )  # fmt: skip


def dtype_named(name: object) -> torch.dtype | None:
    """The dtype of a name, without the lazy imports that `getattr` on torch would start."""
    dtype = vars(torch).get(str(name))
    return dtype if isinstance(dtype, torch.dtype) else None
