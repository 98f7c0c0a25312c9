"""The files of sentence-transformers: its modules lie in folders of their own beside the model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from slt_compress.checkpoints.companions import is_own_file
from slt_compress.errors import SourceError
from slt_compress.storage.files import parse_json
from slt_compress.storage.regular import read_regular_text

MODULES = "modules.json"
_FOLDER = re.compile(r"[0-9]{1,3}_[A-Za-z]\w{0,60}")
_FILE = re.compile(r"[A-Za-z][\w.-]{0,100}\.(json|txt|safetensors)")
_LIMIT = 1 << 20  # bytes of modules.json


def is_module_file(path: str) -> bool:
    """Whether a path such as `1_Pooling/config.json` is a file of a module that may be copied.

    Pickles and code are not.
    """
    folder, separator, name = path.partition("/")
    return bool(separator and _FOLDER.fullmatch(folder) and _FILE.fullmatch(name))


def module_files(folder: Path) -> list[str]:
    """The files of the modules that a folder's `modules.json` names, as relative paths.

    Empty where there is none, or one that cannot be read.
    """
    names = _module_folders(folder)
    found = [
        f"{name}/{file.name}"
        for name in names if (folder / name).is_dir()
        for file in sorted((folder / name).iterdir())
        if is_own_file(file, folder)
    ]  # fmt: skip
    return [path for path in found if is_module_file(path)]


def wanted_of(paths: Iterable[str]) -> list[str]:
    """Those files of a repository that belong to modules, where it has any."""
    known = list(paths)
    return [path for path in known if is_module_file(path)] if MODULES in known else []


def _module_folders(folder: Path) -> list[str]:
    file = folder / MODULES
    if not is_own_file(file, folder):
        return []
    try:
        text = read_regular_text(file, _LIMIT)
        content = parse_json('{"modules": ' + text + "}", str(file), SourceError)
    except (SourceError, OSError, ValueError, RecursionError):
        return []
    modules = content["modules"]
    entries = modules if isinstance(modules, list) else []
    paths = [str(entry.get("path", "")) for entry in entries if isinstance(entry, dict)]
    return sorted({path for path in paths if _FOLDER.fullmatch(path)})
