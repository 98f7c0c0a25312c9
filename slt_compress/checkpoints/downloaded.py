"""What a folder that came from elsewhere may say of places on this machine: nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from slt_compress.checkpoints.checkpoint import Checkpoint
from slt_compress.checkpoints.config_differences import HEAD, config_difference, own_config
from slt_compress.errors import SourceError


def is_downloaded(folder: Path) -> bool:
    """Whether a folder is in the hub's cache, or was fetched by the hub's tools or by git."""
    place = folder.resolve()
    snapshot = place.parent.name == "snapshots" and (place.parent.parent / "blobs").is_dir()
    marked = any((folder / mark).exists() for mark in (".cache/huggingface", ".git"))
    return snapshot or marked or place.is_relative_to(Path(constants.HF_HUB_CACHE).resolve())


def local_record(
    path: Path, record: Mapping[str, Any], override: str | Path | None
) -> Mapping[str, Any]:
    """The record of an origin in the folder `path`, as far as this machine goes by it.

    A downloaded folder names no folder of companion files, and no local weights either, unless
    the user says with `override` where those are.

    Raises:
        SourceError: a downloaded folder names a local path as its origin.
    """
    if not is_downloaded(path):
        return record
    if record.get("kind") in ("folder", "file") and override is None:
        place = record.get("weights") or record.get("source")
        raise SourceError(
            f"{path} was downloaded, and names the local path {str(place)[:80]!r} as its origin: "
            "say where the origin's weights are with --origin PATH"
        )
    return {**record, "companions": None}


def exported_folder(
    record: Mapping[str, Any], checkpoint: Checkpoint, recipe: Mapping[str, Any]
) -> Path | None:
    """The folder whose tokenizer and processor files may be copied into an export.

    That is the opened origin's own. A ticket of a random init or of one weights file may name a
    further local folder for them: nothing of it leaves unless it is the folder that the
    architecture came from, by its `config.json` and the changes in `recipe`.
    """
    named, folder = record.get("companions"), checkpoint.folder
    local = isinstance(named, Mapping) and isinstance(named.get("folder"), str)
    if checkpoint.kind in ("hub", "folder") or folder is None or not local:
        return folder
    with suppress(SourceError):
        changes = recipe.get("model")
        own = own_config(folder, checkpoint.task, changes if isinstance(changes, Mapping) else {})
        if config_difference(checkpoint.family, checkpoint.config, own, HEAD) is None:
            return folder
    return None
