"""Write a page: its data, style, script and plotting library in one HTML file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from slt_compress import __version__
from slt_compress.errors import SltError
from slt_compress.pages.content import page_content
from slt_compress.storage.files import atomic_write

_PARTS = {
    "style": ("page.css",),
    "library": ("d3.min.js", "plot.min.js"),
    "script": ("page.js",),
}
# What would end a script, begin a comment in one, or end a line of it.
_ESCAPES = {char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def write_page(folders: Sequence[Path], file: Path) -> int:
    """Write one page about tickets and exported folders; gives its bytes.

    Raises:
        SltError: a folder cannot be read, or the file cannot be written.
    """
    if file.is_dir():
        raise SltError(f"{file} is a folder: name a file, such as {file / 'report.html'}")
    text = page([page_content(folder) for folder in folders]).encode()
    try:
        with atomic_write(file) as draft:
            draft.write(text)
    except OSError as error:
        raise SltError(f"{file} cannot be written: {error.strerror or error}") from error
    return len(text)


def page(tickets: Sequence[dict[str, Any]]) -> str:
    """The HTML of a page; `tickets` is what `page_content` gives of each folder."""
    data = {"version": __version__, "tickets": list(tickets)}
    content = {name: "\n".join(_static(part) for part in parts) for name, parts in _PARTS.items()}
    content["data"] = _escaped(json.dumps(_finite(data), allow_nan=False, ensure_ascii=True))
    html = _static("page.html")
    for name in ("style", "library", "script", "data"):  # the data last: nothing is put into it
        html = html.replace("{{" + name + "}}", content[name], 1)
    return html


def _static(name: str) -> str:
    return (files("slt_compress.pages") / "static" / name).read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(char, char) for char in text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
