"""A target: a file in a whole folder, how it is mutated, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .mutations import Mutate

QUICK = 5  # the largest share


@dataclass(frozen=True)
class Target:
    """A file in a whole folder, how it is mutated, and what reads it.

    `read` gives what must not change where it gives anything, or None where it may. `share` is how
    often its turn comes among the others': more often where reading is quick.
    """

    name: str
    file: Path
    mutate: Mutate
    read: Callable[[], Any]
    share: int = QUICK
