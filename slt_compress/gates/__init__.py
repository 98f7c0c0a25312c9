"""The methods, in one literal table: the names that YAML and the command line use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from slt_compress.gates.base import (
    Inputs,
    Learned,
    Method,
    OneShot,
    Phase,
    Prior,
    Sample,
    Suited,
    checked,
)
from slt_compress.gates.edge_popup import EdgePopup
from slt_compress.gates.logistic import Gumbel, HardConcrete
from slt_compress.gates.one_shot import Magnitude, Random, Wanda
from slt_compress.gates.relaxed import Relaxed
from slt_compress.gates.swaps import Swaps

METHODS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "relaxed": Relaxed,
        "hard-concrete": HardConcrete,
        "gumbel": Gumbel,
        "edge-popup": EdgePopup,
        "magnitude": Magnitude,
        "wanda": Wanda,
        "swaps": Swaps,
        "random": Random,
    }
)

__all__ = [
    "METHODS",
    "EdgePopup",
    "Gumbel",
    "HardConcrete",
    "Inputs",
    "Learned",
    "Magnitude",
    "Method",
    "OneShot",
    "Phase",
    "Prior",
    "Random",
    "Relaxed",
    "Sample",
    "Suited",
    "Swaps",
    "Wanda",
    "checked",
]
