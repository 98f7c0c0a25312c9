"""Report: what a ticket achieved, as pure data. Its fields are the keys of the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from slt_compress.artifacts.entries import dtype_named
from slt_compress.artifacts.formats import FORMATS, find_pattern
from slt_compress.errors import SltError, TicketError
from slt_compress.evidence.caveats import caveats, place
from slt_compress.evidence.expectations import expectations
from slt_compress.evidence.search_facts import SearchFacts, check_search, search_facts
from slt_compress.evidence.verdicts import Verdict, verdict_of
from slt_compress.storage.manifests import Manifest, as_shape, is_count, is_finite
from slt_compress.tickets import Counts, Metrics, SiteRecord, Ticket, parse_metrics
from slt_compress.tickets.provenance import provenance_of

_SOURCE = ("kind", "source", "revision", "family", "task")
_FIGURES = ("target", "achieved", "kept", "gated", "parameters", "achieved_parameters")


class UnitCounts(TypedDict):
    """How many units of the pattern are kept, and how many competed."""

    kept: int
    gated: int


class LayerRow(TypedDict):
    """One site in a report.

    `units` where the pattern has units that are larger than a weight; `permuted` where it holds in
    a stored order of inputs.
    """

    name: str
    shape: list[int]
    total: int
    kept: int
    sparsity: float
    flips: int
    units: NotRequired[UnitCounts]
    permuted: NotRequired[bool]


class Sparsity(TypedDict):
    """The counts of a report.

    `target` and `achieved` are shares of the gated weights that are removed. The other denominator
    is `parameters`, of the whole model, with `achieved_parameters`. `flips` of the kept weights
    have their sign flipped, which removes nothing. A pattern of larger units adds `units`, and
    `silenced`, kept weights without effect by parameter. Real numbers that were trained beside the
    mask are counted where there are any: `gains` of kept units and `tuned` others, which together
    are the share `tuned_parameters` of all.
    """

    target: float
    achieved: float
    kept: int
    gated: int
    parameters: int
    achieved_parameters: float
    flips: NotRequired[int]
    units: NotRequired[UnitCounts]
    silenced: NotRequired[Mapping[str, int]]
    gains: NotRequired[int]
    tuned: NotRequired[int]
    tuned_parameters: NotRequired[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The evidence for a ticket; every number but `metrics.soft` is of the hard mask.

    Attributes:
        source: where the weights come from.
        sparsity: see `Sparsity`.
        metrics: of the `dense`, the `hard`-masked and the `soft`-gated model.
        controls: metrics of masks with the same counts per layer: `random`, `magnitude`,
            `shuffled`.
        layers: a row per site, in the order of the model.
        skipped: parameters that were not gated, with the reason.
        sizes: bytes of the tensors of the model in each format.
        warnings: what a reader should know before trusting the rest.
        expectations: what this sparsity gains, and where.
        recipe: the resolved recipe.
        search: see `SearchFacts`; empty for what was not searched, or exported before this key.
    """

    source: Mapping[str, object]
    sparsity: Sparsity
    metrics: Metrics
    controls: Metrics
    layers: tuple[LayerRow, ...]
    skipped: Mapping[str, str]
    sizes: Mapping[str, int]
    warnings: tuple[str, ...]
    expectations: tuple[str, ...]
    recipe: Mapping[str, object]
    search: SearchFacts = field(default_factory=lambda: SearchFacts())

    @property
    def verdict(self) -> Verdict | None:
        """What the mask costs, in one metric; None where nothing was measured."""
        task = self.source.get("task")
        return verdict_of(
            self.metrics, self.controls, examples=self.search.get("examples", {}).get("test"),
            task=task if isinstance(task, str) else None,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings and lists, ready for JSON."""
        content = asdict(self)
        for key in ("layers", "warnings", "expectations"):
            content[key] = list(content[key])
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, object], where: Path, error: type[SltError]) -> Report:
        """Undo `to_dict`; `where` is the file, for the message of `error`.

        Raises:
            error: a part is missing or of another type.
        """
        manifest = Manifest(values=content, where=where, error=error)
        _check_figures(manifest)
        for key in ("source", "skipped", "recipe"):
            manifest.object(key)
        if not all(isinstance(reason, str) for reason in manifest.object("skipped").values()):
            raise manifest.damaged("'skipped' does not give a reason in words for each parameter")
        lists = {
            key: _checked_list(manifest, key) for key in ("layers", "warnings", "expectations")
        }
        check_search(manifest)
        known = {entry.name for entry in fields(cls)}
        values: dict[str, Any] = {key: value for key, value in content.items() if key in known}
        return cls(**{**values, **lists})


def _checked_list(manifest: Manifest, key: str) -> tuple[Any, ...]:
    entries, kind = manifest.values.get(key), dict if key == "layers" else str
    if not isinstance(entries, list) or not all(isinstance(entry, kind) for entry in entries):
        raise manifest.damaged(f"{key!r} is not a list of {kind.__name__}")
    for layer in entries if key == "layers" else ():
        # Reports did not always count flips.
        counts = [layer.get("flips", 0), *(layer.get(key) for key in ("total", "kept"))]
        sparsity = layer.get("sparsity")
        share = is_finite(sparsity) and 0 <= sparsity <= 1
        named = isinstance(layer.get("name"), str) and as_shape(layer.get("shape")) is not None
        counted = all(is_count(count, least=0) for count in counts)
        if not named or not share or not counted or layer["kept"] > layer["total"]:
            raise manifest.damaged(f"one of its layers is {str(layer)[:80]}")
    return tuple(entries)


def _check_figures(manifest: Manifest) -> None:
    """Refuse figures that are not numbers."""
    for key in ("metrics", "controls"):
        parse_metrics(manifest, key)
    sparsity, sizes = manifest.object("sparsity"), manifest.object("sizes")
    counted = [sparsity.get(key, 0) for key in ("flips", "gains", "tuned", "tuned_parameters")]
    counted += [sparsity.get(key) for key in _FIGURES]
    units = sparsity.get("units", {"kept": 0, "gated": 0})
    whole = all(
        isinstance(part, dict)
        and all(is_count(part.get(key), least=0) for key in ("kept", "gated"))
        and part["kept"] <= part["gated"]
        for part in (units, sparsity)
    )
    if not whole or not all(is_finite(figure) for figure in counted):
        raise manifest.damaged(f"its sparsity is {str(sparsity)[:60]}")
    if not all(is_count(size, least=0) for size in sizes.values()) or not sizes.get("dense"):
        raise manifest.damaged(f"its sizes are {str(sizes)[:60]}")


def make_report(ticket: Ticket) -> Report:
    """The report of a ticket.

    Raises:
        TicketError: the manifest lacks a part of it.
    """
    layers = [_layer(name, site) for name, site in sorted(ticket.sites.items(), key=place)]
    provenance, sizes = provenance_of(ticket), _sizes(ticket)
    content = {
        "source": {key: ticket.origin.get(key) for key in _SOURCE},
        "sparsity": _sparsity(ticket, 1.0 - provenance.density),
        "metrics": ticket.metrics,
        "controls": ticket.controls,
        "layers": layers,
        "skipped": ticket.skipped,
        "sizes": sizes,
        "warnings": caveats(ticket),
        "expectations": list(
            expectations(sizes, provenance.pattern, permuted=bool(provenance.orders))
        ),
        "recipe": ticket.recipe,
        "search": search_facts(ticket),
    }
    return Report.from_dict(content, ticket.path, TicketError)


def _sparsity(ticket: Ticket, target: float) -> dict[str, Any]:
    counts, silenced = ticket.counts, ticket.extra.silenced
    return {
        "target": ticket.recipe.get("target_sparsity", target),
        "achieved": 1.0 - counts.kept / counts.gated,
        "kept": counts.kept,
        "gated": counts.gated,
        "parameters": counts.parameters,
        "achieved_parameters": (counts.gated - counts.kept) / counts.parameters,
        "flips": counts.flips,
        **({} if counts.units is None else {"units": asdict(counts.units)}),
        **({} if silenced is None else {"silenced": silenced}),
        **_trained(counts),
    }


def _trained(counts: Counts) -> dict[str, Any]:
    """The numbers that were trained beside the mask; nothing where none were."""
    numbers = counts.gains + counts.tuned
    if not numbers:
        return {}
    share = numbers / counts.parameters
    return {"gains": counts.gains, "tuned": counts.tuned, "tuned_parameters": share}


def _layer(name: str, site: SiteRecord) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(site.shape),
        "total": site.total,
        "kept": site.kept,
        "sparsity": 1.0 - site.kept / site.total,
        "flips": site.flips,
        **({} if site.units is None else {"units": asdict(site.units)}),
        **({} if site.facts.order is None else {"permuted": True}),
    }


def _sizes(ticket: Ticket) -> dict[str, int]:
    """Bytes of all tensors in each format, without headers (a few per cent of a tiny file)."""
    dense, sites = ticket.extra.dense_nbytes, []
    for name, site in ticket.sites.items():
        dtype = dtype_named(site.facts.dtype)
        if dtype is None:
            raise TicketError(f"{ticket.path} is damaged: {name} has no known dtype")
        pattern = find_pattern(ticket.masks[name], site.facts.order)
        sites.append((site.shape, site.kept, dtype, pattern))
    gated = sum(FORMATS["dense"].nbytes(*site) for site in sites)
    if dense is None or dense < gated:
        raise TicketError(f"{ticket.path} is damaged: it says its model has {dense} bytes")
    return {name: format.model_nbytes(dense, sites) for name, format in FORMATS.items()}
