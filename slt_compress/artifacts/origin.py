"""The origin of an artifact, as its manifest records it."""

from __future__ import annotations

from collections.abc import Mapping

from slt_compress.artifacts import Artifact, MaskArtifact
from slt_compress.checkpoints import Init
from slt_compress.checkpoints.origins import checked_init
from slt_compress.checkpoints.recorded import RecordedOrigin
from slt_compress.errors import ArtifactError


def origin_of_artifact(artifact: Artifact, mask: MaskArtifact | None = None) -> RecordedOrigin:
    """What the ticket behind an artifact was searched on; only a `mask` holds all of it.

    Raises:
        ArtifactError: the artifact does not say.
    """
    record = _origin(artifact)
    if record is None:
        raise ArtifactError(f"{artifact.path} does not record its origin")
    stored = None if mask is None else mask.stored
    return RecordedOrigin(path=artifact.path, record=record, stored=stored, error=ArtifactError)


def init_of_artifact(artifact: Artifact) -> Init | None:
    """The random init behind an artifact; None for trained weights, or where it does not say.

    Raises:
        ArtifactError: the recorded init is malformed.
    """
    return checked_init((_origin(artifact) or {}).get("init"), ArtifactError)


def _origin(artifact: Artifact) -> Mapping[str, object] | None:
    provenance = artifact.provenance
    record = provenance.get("origin") if isinstance(provenance, Mapping) else None
    return record if isinstance(record, Mapping) else None
