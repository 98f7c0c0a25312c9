"""The parts of a ticket's manifest as plain records, checked once when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from slt_compress.sites.input_orders import as_order
from slt_compress.storage.manifests import Manifest, as_shape, is_count, is_number

# Metrics by the model that they are of; None where it was not measured.
Metrics = Mapping[str, Mapping[str, float] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """How many units of a pattern are kept, and how many competed."""

    kept: int
    gated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Kept and gated weights, and parameters of the model.

    `flips` of the kept weights have their sign flipped; `units` are those of a pattern whose units
    are larger than a weight. `gains` is how many units have a trained gain, `tuned` how many other
    numbers were trained.
    """

    kept: int
    gated: int
    parameters: int
    flips: int = 0
    gains: int = 0
    tuned: int = 0
    units: Units | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; all but the first three only where there are any."""
        counts = {"kept": self.kept, "gated": self.gated, "parameters": self.parameters}
        more = {key: getattr(self, key) for key in ("flips", "gains", "tuned")}
        units = {} if self.units is None else {"units": asdict(self.units)}
        return {**counts, **{key: count for key, count in more.items() if count}, **units}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What is known of a site before its mask: its place in the model, its kind and its dtype.

    `order` is that of its inputs in which its mask is N:M, where it is not their own.
    """

    index: int | None = None
    kind: str | None = None
    dtype: str | None = None
    order: tuple[int, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord:
    """A site in the manifest of a ticket: its facts, and the counts of its mask."""

    facts: SiteFacts
    shape: tuple[int, ...]
    kept: int
    total: int
    flips: int = 0
    units: Units | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; flips and units only where there are any."""
        record = {"shape": list(self.shape), "kept": self.kept, "total": self.total}
        flips = {"flips": self.flips} if self.flips else {}
        units = {} if self.units is None else {"units": asdict(self.units)}
        return {**self.facts.to_dict(), **record, **flips, **units}


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """Facts that no mask depends on.

    Attributes:
        environment: what bit-identical outputs depend on beside the model.
        dense_nbytes: bytes of all tensors of the model.
        data: the data set of the search: its specification and splits.
        notes: sentences for the report.
        silenced: kept weights without effect by parameter, of patterns that remove whole units.
        neighbours_unknown: sites whose neighbours were not found, so that none were counted there.
        imported: `tensors`: the hash of every tensor of the model that was imported, by its name.
    """

    environment: Mapping[str, object] | None = None
    dense_nbytes: int | None = None
    data: Mapping[str, object] | None = None
    notes: tuple[str, ...] = ()
    silenced: Mapping[str, int] | None = None
    neighbours_unknown: tuple[str, ...] | None = None
    imported: Mapping[str, Mapping[str, str]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: `data` and `notes` always, the others where they are known."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        known = {name: value for name, value in values.items() if value is not None}
        return {**known, "data": self.data, "notes": list(self.notes)}


def parse_metrics(manifest: Manifest, key: str) -> Metrics:
    """The metrics under a key of a manifest.

    Raises:
        SltError: they are not numbers by name.
    """
    metrics = manifest.object(key)
    for name, values in metrics.items():
        if values is not None and not (
            isinstance(values, dict) and all(is_number(value) for value in values.values())
        ):
            raise manifest.damaged(f"{key}.{name} is {str(values)[:60]}")
    return metrics


def parse_counts(manifest: Manifest) -> Counts:
    """The counts of a manifest.

    Raises:
        SltError: one is missing or not a positive integer.
    """
    counts = manifest.object("counts")
    for key in ("kept", "gated", "parameters"):
        if not is_count(counts.get(key)):
            raise manifest.damaged(f"it counts {str(counts.get(key))[:40]} {key} weights")
    for key in ("flips", "gains", "tuned"):
        if not is_count(counts.get(key, 0), least=0):
            raise manifest.damaged(f"it counts {str(counts[key])[:40]} {key}")
    return Counts(
        kept=counts["kept"],
        gated=counts["gated"],
        parameters=counts["parameters"],
        flips=counts.get("flips", 0),
        gains=counts.get("gains", 0),
        tuned=counts.get("tuned", 0),
        units=_parse_units(counts, manifest),
    )


def parse_sites(manifest: Manifest) -> dict[str, SiteRecord]:
    """The sites of a ticket, by name; flips are known from version 2 on, orders from 4 on.

    Raises:
        SltError: a site has no shape, or counts that are not integers.
    """
    signed, permuted = (is_count(manifest.values.get("version"), least=n) for n in (2, 4))
    return {
        name: _parse_site(site, manifest, signed=signed, permuted=permuted)
        for name, site in manifest.object("sites").items()
    }


def parse_extra(manifest: Manifest) -> Extra:
    """The further facts of a ticket.

    Raises:
        SltError: a fact that is there is of another type.
    """
    extra = Manifest(values=manifest.object("extra"), where=manifest.where, error=manifest.error)
    silenced = extra.optional("silenced", dict)
    if silenced is not None and not all(is_count(count, least=0) for count in silenced.values()):
        raise manifest.damaged(f"it counts {str(silenced)[:60]} weights without effect")
    unknown, imported = (
        extra.optional("neighbours_unknown", list), extra.optional("imported", dict)
    )  # fmt: skip
    if imported is not None and not isinstance(imported.get("tensors"), dict):
        raise manifest.damaged("it does not say which tensors were imported")
    return Extra(
        environment=extra.optional("environment", dict),
        dense_nbytes=extra.optional("dense_nbytes", int),
        data=extra.optional("data", dict),
        notes=tuple(str(note) for note in extra.optional("notes", list) or () if note),
        silenced=silenced,
        neighbours_unknown=None if unknown is None else tuple(map(str, unknown)),
        imported=imported,
    )


def _parse_site(site: object, manifest: Manifest, *, signed: bool, permuted: bool) -> SiteRecord:
    shape = as_shape(site.get("shape")) if isinstance(site, dict) else None
    if not isinstance(site, dict) or shape is None:
        raise manifest.damaged(f"a site without a shape: {str(site)[:60]}")
    kept, total = site.get("kept"), site.get("total")
    flips = site.get("flips", 0) if signed else 0
    if not is_count(kept, least=0) or not is_count(total, least=0):
        raise manifest.damaged(f"the counts of a site of shape {shape} are not those of its mask")
    if not is_count(flips, least=1 if signed and "flips" in site else 0):
        raise manifest.damaged(f"it counts {str(flips)[:40]} flips of a site of shape {shape}")
    order = as_order(site["order"], shape) if permuted and "order" in site else None
    if permuted and "order" in site and order is None:
        raise manifest.damaged(f"the order of the inputs of a site of shape {shape} is none")
    index, kind, dtype = (site.get(key) for key in ("index", "kind", "dtype"))
    facts = SiteFacts(
        index=index if is_count(index, least=0) else None,
        kind=kind if isinstance(kind, str) else None,
        dtype=dtype if isinstance(dtype, str) else None,
        order=order,
    )
    units = _parse_units(site, manifest) if "units" in site else None
    return SiteRecord(facts=facts, shape=shape, kept=kept, total=total, flips=flips, units=units)


def _parse_units(record: Mapping[str, object], manifest: Manifest) -> Units | None:
    units = record.get("units", {"kept": 1, "gated": 1})
    least = {"kept": 0, "gated": 1}  # a site may lose all of its units
    if not isinstance(units, dict) or not all(is_count(units.get(k), n) for k, n in least.items()):
        raise manifest.damaged(f"it counts {str(units)[:40]} units")
    return Units(kept=units["kept"], gated=units["gated"]) if "units" in record else None
