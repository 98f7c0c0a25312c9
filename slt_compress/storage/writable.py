"""Proof that a folder can be written, by doing what its writer will do."""

from __future__ import annotations

import shutil
from pathlib import Path

from slt_compress.storage.locks import part_name


def prove_writable(path: Path) -> None:
    """Make a folder beside `path` with a file in it, and put it in the place of an empty `path`.

    Nothing is left, folders that had to be made on the way included; an empty `path` is again one.

    Raises:
        OSError: the folder cannot be made, filled or renamed: no right, a mount point, no space.
    """
    made = _make_parents(path.parent)
    first, second = part_name(path), part_name(path)
    try:
        first.mkdir()
        (first / "x").write_bytes(b"x")
        (first / "x").unlink()
        first.replace(second)
        if path.is_dir():
            second.replace(path)
    finally:
        for part in (first, second):
            shutil.rmtree(part, ignore_errors=True)
        for folder in made:
            folder.rmdir()


def _make_parents(folder: Path) -> list[Path]:
    """Make the folders that are missing; gives them, the deepest first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
