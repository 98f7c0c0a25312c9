"""Gains of units: one learned real factor per kept neuron, channel or head of a site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slt_compress.sites.layouts import Blocks, kept_units
from slt_compress.storage.lazy import LazyMapping
from slt_compress.storage.manifests import Manifest, as_shape, is_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGains:
    """The gains of one site.

    Attributes:
        layout: which weights each unit has.
        values: a number per unit, row-major, exact in fp32; None for a unit that is dropped.
    """

    layout: Blocks
    values: tuple[float | None, ...]

    @classmethod
    def of(cls, layout: Blocks, gains: Tensor, mask: Tensor) -> UnitGains:
        """Those of the units that a mask keeps; `gains` has one number per unit (fp32)."""
        kept = kept_units(layout, mask).flatten().tolist()
        numbers = gains.detach().float().flatten().tolist()
        values = tuple(v if keep else None for v, keep in zip(numbers, kept, strict=True))
        return cls(layout=layout, values=values)

    @property
    def count(self) -> int:
        """How many units have a gain: those that are kept."""
        return sum(value is not None for value in self.values)

    def expanded(self) -> Tensor:
        """The factor of every weight (fp32, the shape of the weight); 1 in dropped units."""
        numbers = [1.0 if value is None else value for value in self.values]
        grid = torch.tensor(numbers, dtype=torch.float32)
        return self.layout.expand(grid.reshape(self.layout.grid(self.layout.weight)))

    def fit(self, mask: Tensor) -> bool:
        """Whether exactly the units that a mask keeps have a gain."""
        if tuple(mask.shape) != self.layout.weight:
            return False
        kept = kept_units(self.layout, mask).flatten().tolist()
        return kept == [value is not None for value in self.values]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        layout = self.layout
        return {
            "weight": list(layout.weight), "matrix": list(layout.matrix),
            "block": list(layout.block), "values": list(self.values),
        }  # fmt: skip


def factors_of(
    by_site: Mapping[str, float], by_unit: Mapping[str, UnitGains]
) -> Mapping[str, float | Tensor]:
    """What the kept weights of each site are multiplied by: a number, or one per weight (fp32).

    A site without a factor has no entry. Those of units are expanded whenever they are looked up.
    """

    def make(name: str) -> float | Tensor:
        return by_unit[name].expanded() if name in by_unit else by_site[name]

    return LazyMapping([*by_site, *by_unit], make)


def count_gains(by_unit: Mapping[str, UnitGains]) -> int:
    """How many units have a gain of their own, over all sites."""
    return sum(gains.count for gains in by_unit.values())


def parse_unit_gains(
    manifest: Manifest, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, UnitGains]:
    """The gains of units in a manifest; none where it has no such key.

    With `shapes` (site -> shape) every entry must be of a site and have its shape.

    Raises:
        SltError: they are damaged.
    """
    if "unit_gains" not in manifest.values:
        return {}
    given = manifest.object("unit_gains")
    return {name: _parsed(name, value, manifest, shapes) for name, value in given.items()}


def _parsed(
    name: str, value: object, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]] | None
) -> UnitGains:
    record = value if isinstance(value, Mapping) else {}
    weight, matrix, block = (as_shape(record.get(key)) for key in ("weight", "matrix", "block"))
    values = record.get("values")
    if weight is None or matrix is None or block is None or not isinstance(values, list):
        raise manifest.damaged(f"the unit gains of {name} are {str(value)[:60]}")
    if shapes is not None and shapes.get(name) != weight:
        raise manifest.damaged(f"it has unit gains for {name}, of another shape or no site")
    fits = len(matrix) == len(block) == 2 and math.prod(matrix) == math.prod(weight)
    if not fits or not all(1 <= b <= m for b, m in zip(block, matrix, strict=True)):
        raise manifest.damaged(f"the units of {name} do not fit its shape {weight}")
    layout = Blocks(weight=weight, matrix=(matrix[0], matrix[1]), block=(block[0], block[1]))
    if len(values) != math.prod(layout.grid(weight)) or not all(map(_is_gain, values)):
        raise manifest.damaged(f"the unit gains of {name} are not one number in fp32 per unit")
    return UnitGains(layout=layout, values=tuple(values))


def _is_gain(value: object) -> bool:
    """Whether a JSON value is None, or a float that fp32 holds exactly."""
    if value is None:
        return True
    limit = float(np.finfo(np.float32).max)
    return (
        isinstance(value, float)
        and is_finite(value)
        and abs(value) <= limit
        and float(np.float32(value)) == value
    )
