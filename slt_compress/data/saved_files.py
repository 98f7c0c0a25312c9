"""Files of a saved data set: only regular ones of its own folder, before a library opens them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slt_compress.checkpoints.companions import is_own_file
from slt_compress.errors import DataError
from slt_compress.storage.files import read_json

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def expect_own_files(folder: Path, spec: str) -> None:
    """Refuse a folder of `save_to_disk` that would have other files opened, or a pipe waited for.

    Raises:
        DataError: a pipe, a device, a link that leaves the folder, or a name with a path in it.
    """
    for place in sorted(folder.rglob("*")):
        is_folder = place.is_dir() and not place.is_symlink()
        if not is_folder and not is_own_file(place, folder):
            raise DataError(
                f"{spec}: {place.relative_to(folder)} is not a regular file of this folder; "
                "copy the file there"
            )
    for file in (*folder.rglob(_STATE), *folder.rglob(_SPLITS)):
        for name in _named(read_json(file, DataError)):
            if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                raise DataError(
                    f"{spec}: {file.name} names {str(name)[:80]!r}, not a file or folder beside it"
                )


def _named(content: dict[str, Any]) -> list[Any]:
    """What a `state.json` or `dataset_dict.json` says is to be opened."""
    files, splits = content.get("_data_files", []), content.get("splits", [])
    entries = files if isinstance(files, list) else [files]
    names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries]
    return [*names, *(splits if isinstance(splits, list) else [splits])]
