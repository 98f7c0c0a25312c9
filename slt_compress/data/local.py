"""Read a local path (files, a folder of files, an image folder) into named splits."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as papq

from slt_compress.data.options import SPLITS
from slt_compress.data.rows import Rows, as_rows, concatenate
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


def _read_parquet(path: Path) -> pa.Table:
    return papq.read_table(path, partitioning=None)


def _read_csv(path: Path) -> pa.Table:
    tab = path.suffix.lower() == ".tsv"
    return pacsv.read_csv(
        path,
        parse_options=pacsv.ParseOptions(
            delimiter="\t" if tab else ",", newlines_in_values=not tab
        ),
        # Only an empty number is missing: a class or a text called "NA" or "null" is a string.
        convert_options=pacsv.ConvertOptions(strings_can_be_null=False),
    )


def _read_jsonl(path: Path) -> pa.Table:
    text = path.read_text(encoding="utf-8")
    whole = json.loads(text) if text.lstrip().startswith("[") else None
    rows = whole or [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    names = {name: None for row in rows for name in row}
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _read_txt(path: Path) -> pa.Table:
    # Newlines are kept: a language model should see the text as it is.
    return pa.table({"text": path.read_text(encoding="utf-8").splitlines(keepends=True)})


READERS: Mapping[str, Callable[[Path], pa.Table]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".txt": _read_txt,
}


def read_path(path: Path, spec: str) -> dict[str, Rows]:
    """Splits of a local path, by name; a single file is the split "train" whatever its name.

    Raises:
        DataError: nothing readable there, or a file that is damaged.
    """
    if path.is_file():
        return {"train": as_rows(_read([path], spec))}
    files = _data_files(path) or _data_files(path / "data")
    if files:
        return {name: as_rows(_read(paths, spec)) for name, paths in _by_split(files).items()}
    found = _image_folder(path)
    if found:
        return found
    raise DataError(
        f"{spec} holds no {', '.join(sorted(READERS))} file, no class folders with images and no "
        "data set saved by `datasets`"
    )


def _read(paths: Iterable[Path], spec: str) -> pa.Table:
    tables = []
    for path in paths:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"{path} is not a data file that can be read; use {', '.join(sorted(READERS))}"
            )
        try:
            tables.append(reader(path))
        except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
            said = str(error).splitlines() or [type(error).__name__]
            raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {said[0]}") from error
    return concatenate(tables, spec)


def _split_of(path: Path) -> str | None:
    """The split that a file or folder name speaks of: train-00000-of-00005, val, train_10k."""
    return SPLITS.get(re.split(r"[^a-z]", path.name.lower())[0])


def _data_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    here = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    files = [path for path in here if _is_data(path)]
    for sub in here:
        if sub.is_dir() and _split_of(sub):
            files += [path for path in sorted(sub.iterdir()) if _is_data(path)]
    # A README.txt or metadata.json beside real tables is no data.
    tables = [path for path in files if path.suffix.lower() not in {".txt", ".json"}]
    named = [path for path in files if _split_of(path) or _split_of(path.parent)]
    return [path for path in tables if path in named] or named or tables or files


def _is_data(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in READERS and not path.name.startswith(".")


def _by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path) or _split_of(path.parent) or "train", []).append(path)
    return splits


def _image_folder(folder: Path) -> dict[str, Rows]:
    subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    roots = {name: path for path in subfolders if (name := _split_of(path)) and _classes(path)}
    if not roots:
        roots = {"train": folder}
    names = sorted({name for root in roots.values() for name in _classes(root)})
    return {split: _images(root, names) for split, root in roots.items()} if names else {}


def _classes(folder: Path) -> list[str]:
    return [
        path.name
        for path in folder.iterdir()
        if path.is_dir() and any(file.suffix.lower() in IMAGES for file in path.iterdir())
    ]


def _images(root: Path, names: list[str]) -> Rows:
    paths = [
        (str(path), label)
        for label, name in enumerate(names)
        if (root / name).is_dir()
        for path in sorted((root / name).iterdir())
        if path.suffix.lower() in IMAGES
    ]
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {
            "image": pa.array([{"bytes": None, "path": path} for path, _ in paths], stored),
            "label": pa.array([label for _, label in paths], pa.int64()),
        }
    )
    features = {"label": {"_type": "ClassLabel", "names": names}, "image": {"_type": "Image"}}
    said = json.dumps({"info": {"features": features}})
    return as_rows(table.replace_schema_metadata({"huggingface": said}))
