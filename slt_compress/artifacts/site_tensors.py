"""The weights of a sparse artifact by themselves, for a library that fills a model of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from slt_compress.artifacts.decoding import decode, said_of, stored_parts
from slt_compress.artifacts.formats import CODECS, part_key
from slt_compress.artifacts.reading import described, open_manifest
from slt_compress.errors import ArtifactError


def read_site_tensors(
    path: str | Path, shape_of: Callable[[str], tuple[int, ...] | None]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The weights that a sparse artifact does not store as they are, and the keys of their parts.

    For a library that fills the rest itself. `shape_of` gives the shape that the model has for a
    name; what it lacks (None) is left out.

    Raises:
        ArtifactError: as in `read_artifact`.
    """
    folder = Path(path)
    manifest = open_manifest(folder)
    entries = described(folder, manifest).entries
    parts = stored_parts(folder, manifest)
    for alias, name in manifest.object("ties").items():
        if str(name) not in entries or alias in entries:
            raise manifest.damaged(f"it ties {alias} to {str(name)[:80]}")
    tensors: dict[str, Tensor] = {}
    keys: dict[str, tuple[str, ...]] = {}
    for name, entry in entries.items():
        shape, own = tuple(entry["shape"]), shape_of(name)
        if own is None or not CODECS[entry["format"]].sparse:
            continue
        if own != shape:  # before anything is made in this size
            raise ArtifactError(f"{folder} stores {name} as {shape}; the model has {own}")
        with said_of(folder, name):
            tensors[name], _ = decode(parts[name], entry, masked=False)
        keys[name] = tuple(part_key(name, part) for part in parts[name])
    return tensors, keys
