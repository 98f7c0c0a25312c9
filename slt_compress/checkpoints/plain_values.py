"""Plain values: all that a file may hand to the constructor of a library."""

from __future__ import annotations

import re

DEPTH = 16  # of lists in lists; the deepest that a library's config needs is 4
_WORD = re.compile(r"[A-Za-z0-9_.+\-]{0,64}")
# What no path, address, drive or source prefix can do without.
_NO_PLACE = re.compile(r"[^/\\:\x00-\x1f\x7f]{0,200}")


def is_number(value: object) -> bool:
    """Whether a value is None, a boolean, a number of 64 bits or a float."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float)


def is_word(text: str) -> bool:
    """Whether a text is short and one word, such as the name of a layer; never a path."""
    return _WORD.fullmatch(text) is not None and not text.startswith(".") and ".." not in text


def is_no_place(text: str) -> bool:
    """Whether a text is short and cannot name a file, a folder, an address or a repository."""
    outside = text.startswith(("~", ".")) and len(text) > 1
    return _NO_PLACE.fullmatch(text) is not None and not outside


def is_plain(value: object, depth: int = DEPTH) -> bool:
    """Whether a value is a number, a word, or a list of plain values."""
    if isinstance(value, str):
        return is_word(value)
    if isinstance(value, list | tuple):
        return depth > 0 and all(is_plain(item, depth - 1) for item in value)
    return is_number(value)


def shown(value: object) -> str:
    """A value as an error may show it: on one line, and short."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
