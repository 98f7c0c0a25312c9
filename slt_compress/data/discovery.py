"""Discovery: which files of a folder are data, and which split each of them belongs to.

The rules are those of `datasets`: splits by the words in folder names, else in file names; hidden
files and folders such as `__MACOSX` are left out. Unlike there, no file is in two splits, upper
and lower case are the same, and tables or media win over the text files that lie beside them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from slt_compress.data.options import SPLITS, STORED
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# The kinds of files by suffix; a draw is won by the kind in front.
TABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "parquet": (".parquet",),
        "jsonl": (".jsonl", ".ndjson"),
        "csv": (".csv", ".tsv"),
        **{kind: stored.suffixes for kind, stored in STORED.items()},
        "json": (".json",),
        "txt": (".txt",),
    }
)
# Files of these kinds are often notes beside the data, so they count only where there is no other.
_WEAK = ("json", "txt")
_KIND_OF = {suffix: kind for kind, suffixes in TABLES.items() for suffix in suffixes}
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Tables beside media files that say more about each of them."""
# Files that accompany data sets and folders everywhere, about which nothing needs to be said.
_USUAL = (
    "readme.md", "license", "licence", "notice", "citation", "config.json", "dataset_info.json",
    "dataset_infos.json", "dataset_dict.json", "thumbs.db", "desktop.ini",
)  # fmt: skip
_SEPARATED = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}.*\..*")
_MAX_FILES = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The data files of a folder.

    Attributes:
        root: the folder.
        kind: a key of `TABLES`; all files are of this kind.
        splits: files by split, sorted by path.
        metadata: the metadata tables by split.
        notes: what was left out, a sentence each.
    """

    root: Path
    kind: str
    splits: Mapping[str, tuple[Path, ...]]
    metadata: Mapping[str, tuple[Path, ...]]
    notes: tuple[str, ...]


def list_folder(root: Path, spec: str) -> Listing | None:
    """The data files in a folder and all folders below it; None if there are none.

    Raises:
        DataError: the folder cannot be read.
    """
    visible, hidden = _walk(root, spec)
    data = [path for path in visible if _kind_of(path) is not None]
    by_split, beside = _splits(root, data)
    kind = _main_kind(path for paths in by_split.values() for path in paths)
    if kind is None:
        return None
    splits, metadata, other = {}, {}, list[Path]()
    for split, paths in by_split.items():
        tables = [p for p in paths if kind in STORED and p.name in METADATA]
        mine = [p for p in paths if _kind_of(p) == kind and p not in set(tables)]
        other += [p for p in paths if p not in {*mine, *tables}]
        if mine or tables:
            splits[split], metadata[split] = tuple(mine), tuple(tables)
    unknown = [path for path in visible if _kind_of(path) is None]
    notes = (
        _note(spec, [p for p in hidden if _kind_of(p)], root, "hidden or of the system"),
        _note(spec, beside, root, f"beside the folders or files of the splits {_named(splits)}"),
        _note(spec, other + unknown, root, f"not of the kind {kind}, which most files are"),
    )
    return Listing(
        root=root, kind=kind, splits=splits, metadata=metadata, notes=tuple(filter(None, notes))
    )


def split_in(name: str) -> str | None:
    """The split that a name speaks of (`train-00000-of-00005`, `imdb_test`, `val`), if just one.

    A name with training and validation is one of training data.
    """
    words = {SPLITS[word] for word in _SEPARATED.split(name.lower()) if word in SPLITS}
    if words == {"train", "validation"}:
        return "train"
    return words.pop() if len(words) == 1 else None


def _kind_of(path: Path) -> str | None:
    return _KIND_OF.get(path.suffix.lower())


def _walk(root: Path, spec: str) -> tuple[list[Path], list[Path]]:
    """All files below a folder, those that are visible and those that are not."""
    visible, hidden, seen = list[Path](), list[Path](), set[str]()

    def failed(error: OSError) -> None:
        raise DataError(f"{spec}: a folder cannot be listed: {error}") from error

    for folder, below, names in os.walk(root, onerror=failed, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back to a folder above
            below.clear()
            continue
        seen.add(real)
        below.sort()
        inside = Path(folder).relative_to(root).parts
        concealed = any(part.startswith((".", "__")) for part in inside)
        for name in sorted(names):
            (hidden if concealed or name.startswith(".") else visible).append(Path(folder, name))
        if len(visible) + len(hidden) > _MAX_FILES:
            raise DataError(f"{spec} holds more than {_MAX_FILES:,} files")
    return visible, hidden


def _splits(root: Path, files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Files by split, and those that are in none of the splits although others are."""
    shards = {p: m[1] for p in files if p.parent == root / "data" and (m := _SHARD.match(p.name))}
    folders = _split_of_folders({path: path.relative_to(root).parts[:-1] for path in files})
    names = {path: split_in(path.stem + ".") for path in files}
    for found in (shards, folders, names):
        by_split: dict[str, list[Path]] = {}
        for path in files:
            split = found.get(path)
            if split is not None:
                by_split.setdefault(split, []).append(path)
        if by_split:
            return by_split, [path for path in files if found.get(path) is None]
    return {"train": list(files)}, []


def _split_of_folders(folders: Mapping[Path, tuple[str, ...]]) -> dict[Path, str | None]:
    """The split of each file by the folders above it.

    The level that tells splits apart decides: in `training_data/test/cat` the second, in
    `test/train/1.png`, beside `test/bus`, the first.
    """
    named = {path: [split_in(part) for part in parts] for path, parts in folders.items()}
    depth = max(map(len, named.values()), default=0)
    levels = [{row[i] for row in named.values() if i < len(row)} - {None} for i in range(depth)]
    deciding = next((i for i, splits in enumerate(levels) if len(splits) > 1), 0)
    return {
        path: next(filter(None, [*row[deciding : deciding + 1], *row]), None)
        for path, row in named.items()
    }


def _main_kind(paths: Iterable[Path]) -> str | None:
    """The kind of most files: metadata tables do not count, and weak kinds only on their own."""
    counts = Counter(kind for path in paths if path.name not in METADATA
                     and (kind := _kind_of(path)))  # fmt: skip
    strong = {kind: count for kind, count in counts.items() if kind not in _WEAK}
    ranked = strong or counts
    return max(TABLES, key=lambda kind: ranked.get(kind, 0)) if ranked else None


def _named(splits: Iterable[str]) -> str:
    return ", ".join(splits)


def _note(spec: str, paths: Sequence[Path], root: Path, why: str) -> str:
    """A sentence about files that are left out, with their count by folder; "" for none."""
    paths = [path for path in paths if not path.name.lower().startswith(_USUAL)]
    if not paths:
        return ""
    parents = Counter(str(path.parent.relative_to(root)) for path in paths)
    listed = [
        f"{count} in {folder}"
        if folder != "."
        else _few([p.name for p in paths if p.parent == root])
        for folder, count in parents.most_common(5)
    ]
    more = ", …" if len(parents) > 5 else ""
    files = "1 file is" if len(paths) == 1 else f"{len(paths):,} files are"
    return f"{spec}: {files} left out ({'; '.join(listed)}{more}): {why}."


def _few(found: Iterable[str]) -> str:
    names = list(found)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
