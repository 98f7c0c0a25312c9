"""Quantities as people read them: bytes, seconds, and names that have to fit."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_ELLIPSIS = "…"
_TAILS = (0.5, 0.65, 0.8, 0.9, 1.0, 0.25, 0.0)


def bytes_in_words(size: float) -> str:
    """Bytes in the largest unit that leaves at least one of it, such as `1.5 MiB`."""
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def seconds_in_words(seconds: float) -> str:
    """Seconds as `0.4 s`, `52 s`, `7 min 05 s`, `3 h 20 min` or `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def shortened(text: str, width: int, *, tail: float = 0.5) -> str:
    """The text in at most `width` characters, with its middle left out where it is longer.

    `tail` is the share of these characters that is given to its end.
    """
    if len(text) <= width:
        return text
    kept = max(0, width - 1)
    end = min(kept, round(kept * tail + 0.01))
    return text[: kept - end] + _ELLIPSIS * (width > 0) + text[len(text) - end :]


def shortened_apart(names: Sequence[str], width: int) -> list[str]:
    """Each name in at most `width` characters where they stay different; else wider, but apart.

    Of a long name the middle is left out, or more of its beginning where that keeps two names from
    looking the same.
    """
    different = len(set(names))
    for wider in range(width, max(width, *map(len, names)) + 1) if names else ():
        for tail in _TAILS:
            shown = [shortened(name, wider, tail=tail) for name in names]
            if len(set(shown)) == different:
                return shown
    return list(names)
