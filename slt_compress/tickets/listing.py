"""Listing: what tickets a folder holds, from their manifests alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slt_compress.errors import TicketError
from slt_compress.storage.manifests import Manifest
from slt_compress.tickets.places import MANIFEST
from slt_compress.tickets.reading import open_manifest
from slt_compress.tickets.records import Metrics, parse_counts, parse_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A ticket in a list; `error` says why nothing else is known of a damaged one.

    Attributes:
        path: the folder.
        written: when its manifest was, UTC, ISO 8601.
        source: where the weights come from.
        method: its name.
        dataset: that of the search.
        sparsity: share of the gated weights that is removed.
        metrics: by model, as in a report.
        error: why the ticket cannot be read.
    """

    path: Path
    written: str
    source: str = ""
    method: str = ""
    dataset: str = ""
    sparsity: float | None = None
    metrics: Metrics | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**asdict(self), "path": str(self.path)}


def list_tickets(folder: Path) -> list[Listed]:
    """The tickets in a folder, the newest first; no mask is read and no file is hashed.

    Raises:
        TicketError: the folder does not exist.
    """
    if not folder.is_dir():
        raise TicketError(
            f"there is no folder {folder}; make a ticket with `slt-compress search`, or name the "
            "folder that holds some"
        )
    files = [file for file in folder.glob(f"*/{MANIFEST}") if file.parent.name[0] != "."]
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file.parent.name), reverse=True)
    return [_listed(file) for file in files]


def _listed(file: Path) -> Listed:
    written = datetime.fromtimestamp(int(file.stat().st_mtime), UTC).isoformat()
    try:
        manifest, _ = open_manifest(file.parent)
        return _described(file.parent, written, manifest)
    except TicketError as error:
        return Listed(path=file.parent, written=written, error=str(error))


def _described(folder: Path, written: str, manifest: Manifest) -> Listed:
    counts, recipe = parse_counts(manifest), manifest.object("recipe")
    method, data = recipe.get("method"), manifest.object("extra").get("data")
    spec = data.get("spec") if isinstance(data, Mapping) else None
    return Listed(
        path=folder,
        written=written,
        source=str(manifest.object("origin").get("source")),
        method=str(method.get("name")) if isinstance(method, Mapping) else "",
        dataset=spec if isinstance(spec, str) else "",
        sparsity=1.0 - counts.kept / counts.gated,
        metrics=parse_metrics(manifest, "metrics"),
    )
