"""Patterns: the shapes that a mask may have, parsed from their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from slt_compress.errors import BudgetError

Kind = Literal["unstructured", "n:m", "block", "neuron", "channel", "head"]
PATTERNS = "unstructured, N:M such as 2:4, block:RxC such as block:4x4, neuron, channel, head"

_PLAIN: tuple[Kind, ...] = ("unstructured", "neuron", "channel", "head")
_N_OF_M = re.compile(r"([1-9]\d{0,3}):([1-9]\d{0,3})")
_BLOCK = re.compile(r"block:([1-9]\d{0,5})x([1-9]\d{0,5})")
# The largest difference between N/M and a user's decimal for it (2/3 has no exact decimal).
_SAME = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """The shape of a mask.

    Attributes:
        text: as it was written, such as `2:4`.
        kind: decides what the numbers below mean.
        first, second: N and M, or the rows and columns of a block; otherwise 1.
    """

    text: str
    kind: Kind
    first: int = 1
    second: int = 1

    @property
    def density(self) -> float | None:
        """The kept fraction that the pattern fixes; None if it fixes none."""
        return self.first / self.second if self.kind == "n:m" else None

    @property
    def counts_units(self) -> bool:
        """Whether the units of a budget are larger than one weight."""
        return self.kind in ("block", "neuron", "channel", "head")

    @property
    def silences(self) -> bool:
        """Whether its units are outputs or heads, whose removal makes neighbours dead weights."""
        return self.kind in ("neuron", "channel", "head")

    def contradicts(self, density: float) -> bool:
        """Whether the pattern fixes a different density."""
        return self.density is not None and abs(self.density - density) > _SAME


def parse_pattern(text: str) -> Pattern:
    """The pattern that `text` names.

    Raises:
        BudgetError: an unknown pattern, or one that removes nothing.
    """
    for kind in _PLAIN:
        if text == kind:
            return Pattern(text=text, kind=kind)
    if match := _N_OF_M.fullmatch(text):
        kept, size = int(match[1]), int(match[2])
        if kept >= size:
            raise BudgetError(
                f"the pattern {text!r} removes nothing; in N:M, N must be less than M"
            )
        return Pattern(text=text, kind="n:m", first=kept, second=size)
    if match := _BLOCK.fullmatch(text):
        return Pattern(text=text, kind="block", first=int(match[1]), second=int(match[2]))
    raise BudgetError(f"unknown pattern {text!r}; known: {PATTERNS}")
