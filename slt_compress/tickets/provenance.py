"""Provenance: what proves that a model is its masked origin, checked before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from slt_compress.errors import SltError, TicketError
from slt_compress.sites.input_orders import as_order
from slt_compress.sites.unit_gains import UnitGains, factors_of, parse_unit_gains
from slt_compress.storage.files import sha256_tensors
from slt_compress.storage.manifests import Manifest, is_count, is_finite
from slt_compress.tickets import Ticket
from slt_compress.tickets.records import Counts, parse_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where the weights of a model come from and what was done to them.

    Attributes:
        origin: record of the checkpoint.
        gains: factor per site; empty for pretrained weights.
        flips: how many kept weights have their sign flipped, for the sites that have any.
        density: share of the gated weights that the budget keeps, in (0, 1].
        budget: as asked for.
        weights_hash: hash of the frozen weights of all sites.
        counts: kept and gated weights, parameters of the model, and units of the pattern.
        environment: what bit-identical outputs depend on beside the model.
        orders: of the inputs of sites whose mask is N:M in another order than their own.
        unit_gains: factor per kept unit, for the sites that have them.
        tuned: hash of each parameter that was trained beside the mask, by its name.
    """

    origin: Mapping[str, object]
    gains: Mapping[str, float]
    flips: Mapping[str, int]
    density: float
    budget: Mapping[str, object]
    weights_hash: str
    counts: Counts
    environment: Mapping[str, object]
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unit_gains: Mapping[str, UnitGains] = field(default_factory=dict)
    tuned: Mapping[str, str] = field(default_factory=dict)

    @property
    def factors(self) -> Mapping[str, float | Tensor]:
        """What the kept weights of a site are multiplied by, for the sites that have it."""
        return factors_of(self.gains, self.unit_gains)

    @property
    def pattern(self) -> str:
        """The pattern that the budget asks for."""
        return str(self.budget.get("pattern", "unstructured"))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that the manifest of an artifact holds."""
        return {
            "origin": self.origin,
            "gains": self.gains,
            "flips": self.flips,
            "budget": self.budget,
            "weights_hash": self.weights_hash,
            "counts": self.counts.to_dict(),
            "environment": self.environment,
            **({"orders": self.orders} if self.orders else {}),
            **trained_record(self.unit_gains, self.tuned),
        }


def provenance_of(ticket: Ticket) -> Provenance:
    """The provenance of every model made from a ticket.

    Raises:
        TicketError: the manifest lacks a part of it.
    """
    values = {
        "origin": ticket.origin,
        "gains": ticket.gains,
        "flips": {name: int(f.count_nonzero()) for name, f in ticket.masks.flips.items()},
        "budget": ticket.budget,
        "weights_hash": ticket.weights_hash,
        "counts": ticket.counts.to_dict(),
        "environment": ticket.extra.environment,
        "orders": ticket.orders,
        **trained_record(
            ticket.unit_gains,
            {name: sha256_tensors({name: tensor}) for name, tensor in ticket.tuned.items()},
        ),
    }
    return check_provenance(values, ticket.path, TicketError)


def trained_record(unit_gains: Mapping[str, UnitGains], tuned: Mapping[str, str]) -> dict[str, Any]:
    """The JSON keys of what was trained beside the mask; none where nothing was."""
    gains = {name: gains.to_dict() for name, gains in unit_gains.items()}
    return {**({"unit_gains": gains} if gains else {}), **({"tuned": tuned} if tuned else {})}


def check_provenance(values: object, where: Path, error: type[SltError]) -> Provenance:
    """A provenance from the JSON of a manifest in the folder `where`.

    Raises:
        error: a part is missing or of another type.
    """
    if not isinstance(values, Mapping):
        raise error(f"{where} does not record where its weights come from")
    manifest = Manifest(values=values, where=where, error=error)
    budget, gains = manifest.object("budget"), manifest.object("gains")
    if not is_finite(budget.get("density")) or not 0.0 < budget["density"] <= 1.0:
        raise manifest.damaged(f"the density of its budget is {str(budget.get('density'))[:40]}")
    for name, gain in gains.items():
        if not is_finite(gain):
            raise manifest.damaged(f"the gain of {name} is {str(gain)[:40]}")
    flips = manifest.object("flips") if "flips" in values else {}
    for name, count in flips.items():
        if not is_count(count):
            raise manifest.damaged(f"it counts {str(count)[:40]} flips for {name}")
    orders = manifest.object("orders") if "orders" in values else {}
    checked = {name: as_order(order) for name, order in orders.items()}
    tuned = manifest.object("tuned") if "tuned" in values else {}
    if not all(isinstance(digest, str) for digest in tuned.values()):
        raise manifest.damaged("it does not hold a hash for each tuned parameter")
    return Provenance(
        origin=manifest.object("origin"),
        gains=gains,
        flips=flips,
        density=float(budget["density"]),
        budget=budget,
        weights_hash=manifest.text("weights_hash"),
        counts=parse_counts(manifest),
        environment=manifest.object("environment"),
        orders={name: _ordered(name, order, manifest) for name, order in checked.items()},
        unit_gains=parse_unit_gains(manifest),
        tuned=tuned,
    )


def _ordered(name: str, order: tuple[int, ...] | None, manifest: Manifest) -> tuple[int, ...]:
    if order is None:
        raise manifest.damaged(f"the order of the inputs of {name} is none")
    return order
