"""The origin of an artifact, as its manifest records it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slt_compress.artifacts import MaskArtifact
from slt_compress.checkpoints import Init
from slt_compress.checkpoints.recorded import RecordedOrigin
from slt_compress.errors import ArtifactError


def origin_of_artifact(
    path: Path, provenance: object, mask: MaskArtifact | None = None
) -> RecordedOrigin:
    """What the ticket behind an artifact was searched on; only one of a `mask` is all there.

    Raises:
        ArtifactError: the artifact does not say.
    """
    record = provenance.get("origin") if isinstance(provenance, Mapping) else None
    if not isinstance(record, Mapping):
        raise ArtifactError(f"{path} does not record its origin")
    stored = None if mask is None else mask.stored
    return RecordedOrigin(path=path, record=record, stored=stored, error=ArtifactError)


def recorded_init(provenance: object) -> Init | None:
    """The random init behind an artifact, where it says of one."""
    origin = provenance.get("origin") if isinstance(provenance, Mapping) else None
    init = origin.get("init") if isinstance(origin, Mapping) else None
    scheme, seed = (init.get("scheme"), init.get("seed")) if isinstance(init, dict) else (0, 0)
    return Init(scheme=scheme, seed=seed) if isinstance(scheme, str) and type(seed) is int else None
