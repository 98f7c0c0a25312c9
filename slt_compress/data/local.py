"""Read a local path (a file, a folder of tables, a folder of images or sounds) into splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slt_compress.data.discovery import TABLES, list_folder
from slt_compress.data.media_folders import read_media
from slt_compress.data.options import STORED
from slt_compress.data.rows import Rows, as_rows
from slt_compress.data.tables import READERS, read_tables
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def read_path(path: Path, spec: str) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Splits of a local path, by name, and notes on what was left out or assumed.

    A single file is the split "train", whatever its name.

    Raises:
        DataError: nothing readable there, or a file that is damaged.
    """
    if path.is_file():
        return {"train": as_rows(read_tables([path], spec))}, ()
    if not path.is_dir():
        raise DataError(
            f"{spec} is a pipe, a socket or a device; save what it gives in a file, and name that"
        )
    listing = list_folder(path, spec)
    if listing is None:
        raise DataError(
            f"{spec} holds no {', '.join(sorted(READERS))} file, no images or sounds "
            f"({', '.join(TABLES[next(iter(STORED))][:4])}, …) and no data set saved by `datasets`"
        )
    if listing.kind in STORED:
        splits, notes = read_media(listing, spec)
    else:
        tables = listing.splits.items()
        splits = {split: as_rows(read_tables(paths, spec)) for split, paths in tables}
        notes = ()
    return splits, (*listing.notes, *notes)
