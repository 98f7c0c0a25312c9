"""Shrinking: make the matrices of a model with empty rows and columns physically smaller."""

from __future__ import annotations

from slt_compress.artifacts.shrinking.cuts import Fold, Shrunk, Sliced, parse_shrunk, resize_
from slt_compress.artifacts.shrinking.cutting import (
    TOLERANCE,
    Shrinking,
    shrink,
    shrunken,
    tolerance_of,
)
from slt_compress.artifacts.shrinking.decision import LayerNote
from slt_compress.artifacts.shrinking.proving import prove

__all__ = [
    "TOLERANCE",
    "Fold",
    "LayerNote",
    "Shrinking",
    "Shrunk",
    "Sliced",
    "parse_shrunk",
    "prove",
    "resize_",
    "shrink",
    "shrunken",
    "tolerance_of",
]
