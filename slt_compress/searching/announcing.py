"""Announcing: what a search reads and measures, said before its first step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slt_compress.data import SearchData

LOGGER = logging.getLogger("slt_compress")
"""The command line shows its lines on stderr; a program that sets up no logging sees warnings."""


def announce(data: SearchData) -> None:
    """Log the overview of the data, and a warning for everything that looks wrong."""
    LOGGER.info("%s", data.overview)
    for warning in data.warnings:
        LOGGER.warning("warning: %s", warning)
