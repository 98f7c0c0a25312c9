"""The weights of a sparse artifact by themselves, for a library that fills a model of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from slt_compress.artifacts.decoding import decode, errors_of, stored_parts
from slt_compress.artifacts.formats import CODECS, is_plain, part_key
from slt_compress.artifacts.reading import checked_ties, describe_artifact
from slt_compress.errors import ArtifactError


def read_site_tensors(
    path: str | Path, shape_of: Callable[[str], tuple[int, ...] | None]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]]]:
    """The weights that a sparse artifact stores in parts, and the keys of these parts.

    The library that calls fills the rest itself. `shape_of` gives the shape that the model has for
    a name; a name that the model lacks (None) is left out.

    Raises:
        ArtifactError: as in `read_artifact`.
    """
    artifact = describe_artifact(path)
    folder, entries = artifact.path, artifact.entries
    parts = stored_parts(artifact)
    checked_ties(artifact)
    tensors: dict[str, Tensor] = {}
    keys: dict[str, tuple[str, ...]] = {}
    for name, entry in entries.items():
        own = shape_of(name)
        if own is None or is_plain(CODECS[entry.format]):
            continue
        if own != entry.shape:  # before anything of this size is made
            raise ArtifactError(f"{folder} stores {name} as {entry.shape}; the model has {own}")
        with errors_of(folder, name):
            tensors[name], _ = decode(parts[name], entry, masked=False)
        keys[name] = tuple(part_key(name, part) for part in parts[name])
    return tensors, keys
