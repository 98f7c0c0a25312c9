"""Patterns: the shapes that a mask may have, from the text that names them."""

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
# A user's decimal for N/M is taken for it up to this difference (2/3 is no decimal).
_SAME = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """The shape of a mask.

    Attributes:
        text: as it was written, such as `2:4`.
        kind: what the other numbers mean.
        first, second: N and M, or the rows and columns of a block; else 1.
    """

    text: str
    kind: Kind
    first: int = 1
    second: int = 1

    @property
    def density(self) -> float | None:
        """The kept fraction that the pattern fixes; None where any will do."""
        return self.first / self.second if self.kind == "n:m" else None

    @property
    def counts_units(self) -> bool:
        """Whether a budget counts units that are larger than a weight."""
        return self.kind in ("block", "neuron", "channel", "head")

    @property
    def silences(self) -> bool:
        """Whether its units are outputs or heads, whose neighbours lose their effect with them."""
        return self.kind in ("neuron", "channel", "head")

    def contradicts(self, density: float) -> bool:
        """Whether the pattern fixes another density than this one."""
        return self.density is not None and abs(self.density - density) > _SAME


def parse_pattern(text: str) -> Pattern:
    """The pattern that `text` names.

    Raises:
        BudgetError: there is none of that name.
    """
    for kind in _PLAIN:
        if text == kind:
            return Pattern(text=text, kind=kind)
    if found := _N_OF_M.fullmatch(text):
        kept, size = int(found[1]), int(found[2])
        if kept >= size:
            raise BudgetError(f"the pattern {text!r} removes nothing: N of N:M is less than M")
        return Pattern(text=text, kind="n:m", first=kept, second=size)
    if found := _BLOCK.fullmatch(text):
        return Pattern(text=text, kind="block", first=int(found[1]), second=int(found[2]))
    raise BudgetError(f"unknown pattern {text!r}; known: {PATTERNS}")
