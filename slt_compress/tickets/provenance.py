"""Provenance: what proves that a model is its masked origin, checked before it is believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slt_compress.errors import SltError, TicketError
from slt_compress.storage.manifests import Manifest
from slt_compress.tickets import Ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the weights of a model come from and what was done to them.

    Attributes:
        origin: record of the checkpoint.
        gains: factor per site; empty for pretrained weights.
        flips: how many kept weights have their sign flipped, for the sites that have any.
        budget: as asked for; `density` is a number in (0, 1].
        weights_hash: hash of the frozen weights of all sites.
        counts: `kept` and `gated` weights, and `parameters` of the model; under `units`, where
            the pattern has larger ones, how many of them are `kept` and `gated`.
        environment: what bit-identical outputs depend on beside the model.
    """

    origin: Mapping[str, Any]
    gains: Mapping[str, float]
    flips: Mapping[str, int]
    budget: Mapping[str, Any]
    weights_hash: str
    counts: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def density(self) -> float:
        """Share of the gated weights that the budget keeps."""
        return float(self.budget["density"])

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings, as the manifest of an artifact holds them."""
        return asdict(self)


def provenance_of(ticket: Ticket) -> Provenance:
    """The provenance of every model made from a ticket.

    Raises:
        TicketError: the manifest lacks a part of it.
    """
    extra = ticket.summary.get("extra")
    values = {
        "origin": dict(ticket.origin),
        "gains": dict(ticket.gains),
        "flips": {name: int(f.count_nonzero()) for name, f in ticket.masks.flips.items()},
        "budget": dict(ticket.budget),
        "weights_hash": ticket.summary.get("weights_hash"),
        "counts": ticket.summary.get("counts"),
        "environment": extra.get("environment") if isinstance(extra, dict) else None,
    }
    return check_provenance(values, ticket.path, TicketError)


def check_provenance(values: object, where: Path, error: type[SltError]) -> Provenance:
    """A provenance from the JSON of a manifest in the folder `where`.

    Raises:
        error: a part is missing or of another type.
    """
    if not isinstance(values, Mapping):
        raise error(f"{where} does not record where its weights come from")
    manifest = Manifest(values=values, where=where, error=error)
    counts, budget, gains = (manifest.object(key) for key in ("counts", "budget", "gains"))
    for key in ("kept", "gated", "parameters"):
        if type(counts.get(key)) is not int or not counts[key] > 0:
            raise manifest.damaged(f"it counts {str(counts.get(key))[:40]} {key} weights")
    units = counts.get("units", {"kept": 1, "gated": 1})
    if not isinstance(units, dict) or not all(
        type(units.get(key)) is int and units[key] > 0 for key in ("kept", "gated")
    ):
        raise manifest.damaged(f"it counts {str(units)[:40]} units")
    if not _is_number(budget.get("density")) or not 0.0 < budget["density"] <= 1.0:
        raise manifest.damaged(f"the density of its budget is {str(budget.get('density'))[:40]}")
    for name, gain in gains.items():
        if not _is_number(gain):
            raise manifest.damaged(f"the gain of {name} is {str(gain)[:40]}")
    flips = manifest.object("flips") if "flips" in values else {}
    for name, count in flips.items():
        if type(count) is not int or count < 1:
            raise manifest.damaged(f"it counts {str(count)[:40]} flips for {name}")
    return Provenance(
        origin=manifest.object("origin"),
        gains=gains,
        flips=flips,
        budget=budget,
        weights_hash=manifest.text("weights_hash"),
        counts=counts,
        environment=manifest.object("environment"),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
