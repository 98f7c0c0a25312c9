"""Shrinking: make the matrices of a model with empty rows and columns physically smaller."""

from __future__ import annotations

from slt_compress.shrinking.deciding import LayerNote
from slt_compress.shrinking.planning import TOLERANCE, Shrinking, shrink, shrunken, tolerance_of
from slt_compress.shrinking.proving import prove
from slt_compress.shrinking.records import Fold, Shrunk, Sliced, parse_shrunk, resize_

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
