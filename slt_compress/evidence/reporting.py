"""Report: what a ticket achieved, as pure data. Its fields are the keys of the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from slt_compress.artifacts import is_artifact
from slt_compress.artifacts.formats import FORMATS, NmPattern, find_pattern
from slt_compress.errors import ArtifactError, SltError, TicketError
from slt_compress.evidence.expectations import expectations
from slt_compress.storage.files import read_json
from slt_compress.storage.manifests import Manifest, as_shape
from slt_compress.tickets import Ticket, read_ticket
from slt_compress.tickets.provenance import provenance_of

_SOURCE = ("kind", "source", "revision", "family", "task")
_FIGURES = ("target", "achieved", "kept", "gated", "parameters", "achieved_parameters")
# How many layers with empty rows are named one by one.
_LISTED = 5
# Schemes whose magnitudes are all equal within a layer, so that ranking by them says nothing.
_EQUAL_MAGNITUDES = ("signed-constant", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The evidence for a ticket; every number but `metrics.soft` is of the hard mask.

    Attributes:
        source: where the weights come from.
        sparsity: `target`, `achieved` (share of the gated weights removed), `kept`, `gated`, and
            `parameters` (of the whole model, the other denominator) with `achieved_parameters`;
            `flips` of the kept weights have their sign flipped, which removes nothing; with a
            pattern of larger units also `units`, how many of them are `kept` and `gated`, and
            `silenced`, kept weights without effect by parameter.
        metrics: of the `dense`, the `hard`-masked and the `soft`-gated model.
        controls: metrics of masks with the same counts per layer: `random`, `magnitude`,
            `shuffled`.
        layers: per site `name`, `shape`, `total`, `kept`, `sparsity`, `flips`, and `units`.
        skipped: parameters that were not gated, with the reason.
        sizes: bytes of the tensors of the model in each format.
        warnings: what a reader should know before trusting the rest.
        expectations: what this sparsity buys where.
        recipe: the resolved recipe.
    """

    source: Mapping[str, Any]
    sparsity: Mapping[str, Any]
    metrics: Mapping[str, Any]
    controls: Mapping[str, Any]
    layers: tuple[Mapping[str, Any], ...]
    skipped: Mapping[str, str]
    sizes: Mapping[str, int]
    warnings: tuple[str, ...]
    expectations: tuple[str, ...]
    recipe: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings and lists, ready for JSON."""
        content = asdict(self)
        for key in ("layers", "warnings", "expectations"):
            content[key] = list(content[key])
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: Path, error: type[SltError]) -> Report:
        """Undo `to_dict`; `where` is the file, for the message of `error`.

        Raises:
            error: a part is missing or of another type.
        """
        manifest = Manifest(values=content, where=where, error=error)
        _check_figures(manifest)
        for key in ("source", "metrics", "controls", "skipped", "recipe"):
            manifest.object(key)
        lists = {key: content.get(key) for key in ("layers", "warnings", "expectations")}
        for key, entries in lists.items():
            kind = dict if key == "layers" else str
            if not isinstance(entries, list) or not all(isinstance(e, kind) for e in entries):
                raise manifest.damaged(f"{key!r} is no list of a {kind.__name__} each")
        for layer in content["layers"]:
            numbers = {key: layer.get(key) for key in ("total", "kept", "sparsity")}
            numbers["flips"] = layer.get("flips", 0)  # reports did not always count them
            shape = as_shape(layer.get("shape"))
            if not isinstance(layer.get("name"), str) or shape is None or not _numeric(numbers):
                raise manifest.damaged(f"one of its layers is {str(layer)[:80]}")
        known = {entry.name for entry in fields(cls)}
        plain = {key: value for key, value in content.items() if key in known}
        return cls(**{**plain, **{key: tuple(entries or ()) for key, entries in lists.items()}})


def _check_figures(manifest: Manifest) -> None:
    """Refuse figures that are no numbers."""
    figures = {key: manifest.object(key) for key in ("metrics", "controls")}
    for key, found in figures.items():
        for name, metrics in found.items():
            if metrics is not None and not (isinstance(metrics, dict) and _numeric(metrics)):
                raise manifest.damaged(f"{key}.{name} is {str(metrics)[:60]}")
    sparsity, sizes = manifest.object("sparsity"), manifest.object("sizes")
    counted = {"flips": sparsity.get("flips", 0), **{key: sparsity.get(key) for key in _FIGURES}}
    if not _numeric(counted):
        raise manifest.damaged(f"its sparsity is {str(sparsity)[:60]}")
    if not _numeric(sizes) or not sizes.get("dense"):
        raise manifest.damaged(f"its sizes are {str(sizes)[:60]}")


def _numeric(values: Mapping[str, Any]) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values.values())


def report_of(folder: Path) -> Report:
    """The report of a ticket, or the one that an exported folder holds.

    Raises:
        SltError: the folder is neither, or damaged.
    """
    if is_artifact(folder):
        file = folder / "report.json"
        return Report.from_dict(read_json(file, ArtifactError), file, ArtifactError)
    return make_report(read_ticket(folder))


def make_report(ticket: Ticket) -> Report:
    """The report of a ticket.

    Raises:
        TicketError: the manifest lacks a part of it.
    """
    counts = provenance_of(ticket).counts
    kept, gated, parameters = counts["kept"], counts["gated"], counts["parameters"]
    sites: Mapping[str, Mapping[str, Any]] = ticket.summary["sites"]
    layers = [_layer(name, site) for name, site in sorted(sites.items(), key=_place)]
    origin, sizes = ticket.origin, _sizes(ticket)
    content = {
        "source": {key: origin.get(key) for key in _SOURCE},
        "sparsity": {
            "target": ticket.recipe.get("target_sparsity", 1.0 - float(ticket.budget["density"])),
            "achieved": 1.0 - kept / gated,
            "kept": kept,
            "gated": gated,
            "parameters": parameters,
            "achieved_parameters": (gated - kept) / parameters,
            "flips": ticket.masks.flipped,
            **({"units": counts["units"]} if "units" in counts else {}),
            **({"silenced": _extra(ticket)["silenced"]} if "silenced" in _extra(ticket) else {}),
        },
        "metrics": ticket.metrics,
        "controls": ticket.controls,
        "layers": layers,
        "skipped": ticket.skipped,
        "sizes": sizes,
        "warnings": _warnings(ticket, layers),
        "expectations": list(expectations(sizes, str(ticket.budget.get("pattern")))),
        "recipe": ticket.recipe,
    }
    return Report.from_dict(content, ticket.path, TicketError)


def _place(entry: tuple[str, Mapping[str, Any]]) -> tuple[int, str]:
    """Layers come in the order of the model, which the manifest's sorted keys do not keep."""
    name, index = entry[0], entry[1].get("index")
    return index if type(index) is int else -1, name


def _layer(name: str, site: Mapping[str, Any]) -> dict[str, Any]:
    kept, total = site["kept"], site["total"]
    return {
        "name": name,
        "shape": list(site["shape"]),
        "total": total,
        "kept": kept,
        "sparsity": 1.0 - kept / total,
        "flips": site.get("flips", 0),
        **({"units": site["units"]} if "units" in site else {}),
    }


def _sizes(ticket: Ticket) -> dict[str, int]:
    """Bytes of all tensors in each format; headers (a few per cent of a tiny file) aside."""
    dense = _extra(ticket).get("dense_nbytes")
    shapes: list[tuple[tuple[int, ...], int, torch.dtype, NmPattern | None]] = []
    for name, site in ticket.summary["sites"].items():
        dtype = vars(torch).get(str(site.get("dtype")))
        if not isinstance(dtype, torch.dtype):
            raise TicketError(f"{ticket.path} is damaged: {name} has no known dtype")
        pattern = find_pattern(ticket.masks[name])
        shapes.append((tuple(site["shape"]), site["kept"], dtype, pattern))
    gated = sum(FORMATS["dense"].nbytes(*site) for site in shapes)
    if type(dense) is not int or dense < gated:
        raise TicketError(f"{ticket.path} is damaged: it says its model has {dense} bytes")
    return {name: format.model_nbytes(dense, shapes) for name, format in FORMATS.items()}


def _extra(ticket: Ticket) -> Mapping[str, Any]:
    extra = ticket.summary.get("extra")
    return extra if isinstance(extra, dict) else {}


def _warnings(ticket: Ticket, layers: list[dict[str, Any]]) -> list[str]:
    found = [f"{layer['name']} is dead: none of its weights is kept" for layer in layers
             if layer["kept"] == 0]  # fmt: skip
    partly = _empty_rows(ticket)
    found += partly[:_LISTED]
    if len(partly) > _LISTED:
        found.append(f"{len(partly) - _LISTED} more layers have empty rows")
    found += _without_effect(ticket)
    init = ticket.origin.get("init")
    if isinstance(init, dict) and init.get("scheme") in _EQUAL_MAGNITUDES:
        found.append(
            "the control 'magnitude' is uninformative: all weights of a layer have one magnitude"
        )
    notes = _extra(ticket).get("notes")
    return found + [str(note) for note in notes if note] if isinstance(notes, list) else found


def _empty_rows(ticket: Ticket) -> list[str]:
    """A sentence per layer that lost some of its rows, all of whose weights are removed."""
    found: list[str] = []
    if ticket.budget.get("pattern") in ("neuron", "channel"):
        return found  # the rows are what was to be removed: `units` counts them
    for name, mask in ticket.masks.items():
        rows = mask.reshape(len(mask), -1)
        dead = len(rows) - int(rows.numpy().any(axis=1).sum())
        if 0 < dead < len(rows):
            found.append(f"{name}: {dead} of {len(rows)} rows (first dimension) are empty")
    return found


def _without_effect(ticket: Ticket) -> list[str]:
    """What the removed units of a pattern leave without effect elsewhere."""
    extra = _extra(ticket)
    silenced, unknown = extra.get("silenced"), extra.get("neighbours_unknown")
    found: list[str] = []
    if isinstance(silenced, dict) and silenced and _numeric(silenced):
        found.append(
            f"{sum(silenced.values()):,} kept weights of {len(silenced)} layers have no effect: "
            "they read or feed removed units only"
        )
    if isinstance(unknown, list) and unknown:
        found.append(
            f"the neighbours of {len(unknown)} layers ({unknown[0]}, …) are not known: weights "
            "that their removed units leave without effect are not counted"
        )
    return found
