"""The methods, in one literal table: the names that YAML and the command line use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from slt_compress.methods.base import Learned, Method, OneShot, Phase, Sample
from slt_compress.methods.one_shot import Magnitude, Random
from slt_compress.methods.relaxed import Relaxed

METHODS: Mapping[str, type[Relaxed] | type[Magnitude] | type[Random]] = MappingProxyType(
    {
        "relaxed": Relaxed,
        "magnitude": Magnitude,
        "random": Random,
    }
)

__all__ = [
    "METHODS",
    "Learned",
    "Magnitude",
    "Method",
    "OneShot",
    "Phase",
    "Random",
    "Relaxed",
    "Sample",
]
