"""Similar names: what was probably meant by one that is not known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

_ALIKE = 0.6  # share of two names that has to match
_MARKS = re.compile(r"[\s_\-./:]+")


def similar(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like `name`, by letters and digits; None if none is like it.

    The last part of known names, such as `lr` of `training.lr`, means the first of them.
    """
    names = list(known)
    ends = [entry for entry in names if entry.rpartition(".")[2] == name.rpartition(".")[2]]
    if ends and name not in ends and (len(ends) == 1 or "." not in name):
        return ends[0]
    wanted, best = _bare(name), (0.0, "")
    for entry in names:
        bare = _bare(entry)
        likeness = SequenceMatcher(None, wanted, bare).ratio()
        if wanted and (bare.startswith(wanted) or wanted.startswith(bare)) and len(wanted) > 2:
            likeness += 0.3
        best = max(best, (likeness, entry), key=lambda pair: pair[0])
    return best[1] if best[0] >= _ALIKE and best[1] != name else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where no known name is like it."""
    close = similar(name, known)
    return "" if close is None else f"; did you mean {close}?"


def _bare(name: str) -> str:
    return _MARKS.sub("", name).lower()
