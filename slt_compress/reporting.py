"""Report: what a ticket achieved, as pure data. Its fields are the keys of the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch

from slt_compress.formats import FORMATS
from slt_compress.ticket import Ticket

# Schemes whose magnitudes are all equal within a layer, so that ranking by them says nothing.
_EQUAL_MAGNITUDES = ("signed-constant", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The evidence for a ticket; every number but `metrics.soft` is of the hard mask.

    Attributes:
        source: where the weights come from.
        sparsity: `target`, `achieved` (share of the gated weights removed), `kept`, `gated`, and
            `parameters` (of the whole model, the other denominator) with `achieved_parameters`.
        metrics: of the `dense`, the `hard`-masked and the `soft`-gated model.
        controls: metrics of masks with the same counts per layer: `random`, `magnitude`,
            `shuffled`.
        layers: per site `name`, `shape`, `total`, `kept`, `sparsity`.
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
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """Undo `to_dict`."""
        lists = {key: tuple(content[key]) for key in ("layers", "warnings", "expectations")}
        return cls(**{**content, **lists})


def make_report(ticket: Ticket) -> Report:
    """The report of a ticket."""
    counts = ticket.summary["counts"]
    kept, gated, parameters = counts["kept"], counts["gated"], counts["parameters"]
    layers = tuple(_layer(name, site) for name, site in ticket.summary["sites"].items())
    origin = ticket.origin
    return Report(
        source={key: origin.get(key) for key in ("kind", "source", "revision", "family", "task")},
        sparsity={
            "target": ticket.recipe.get("target_sparsity", 1.0 - float(ticket.budget["density"])),
            "achieved": 1.0 - kept / gated,
            "kept": kept,
            "gated": gated,
            "parameters": parameters,
            "achieved_parameters": (gated - kept) / parameters,
        },
        metrics=ticket.metrics,
        controls=ticket.controls,
        layers=layers,
        skipped=ticket.skipped,
        sizes=_sizes(ticket),
        warnings=_warnings(ticket, layers),
        expectations=_expectations(1.0 - kept / gated),
        recipe=ticket.recipe,
    )


def _layer(name: str, site: Mapping[str, Any]) -> dict[str, Any]:
    kept, total = site["kept"], site["total"]
    return {
        "name": name,
        "shape": list(site["shape"]),
        "total": total,
        "kept": kept,
        "sparsity": 1.0 - kept / total,
    }


def _sizes(ticket: Ticket) -> dict[str, int]:
    """Bytes of all tensors in each format; headers (a few per cent of a tiny file) aside."""
    dense = int(ticket.summary["extra"]["dense_nbytes"])
    sites = ticket.summary["sites"].values()
    shapes = [(tuple(site["shape"]), site["kept"], getattr(torch, site["dtype"])) for site in sites]
    rest = dense - sum(prod(shape) * dtype.itemsize for shape, _, dtype in shapes)
    return {
        name: rest + sum(codec.nbytes(shape, kept, dtype) for shape, kept, dtype in shapes)
        for name, codec in FORMATS.items()
    }


def _warnings(ticket: Ticket, layers: tuple[Mapping[str, Any], ...]) -> tuple[str, ...]:
    found = [f"{layer['name']} is dead: none of its weights is kept" for layer in layers
             if layer["kept"] == 0]  # fmt: skip
    for name, mask in ticket.masks.items():
        rows = mask.reshape(len(mask), -1)
        dead = int((~rows.any(dim=1)).sum())
        if 0 < dead < len(rows):
            found.append(f"{name}: {dead} of {len(rows)} rows (first dimension) are empty")
    init = ticket.origin.get("init") or {}
    if init.get("scheme") in _EQUAL_MAGNITUDES:
        found.append(
            "the control 'magnitude' is uninformative: all weights of a layer have one magnitude"
        )
    extra = ticket.summary["extra"]
    found += [note for note in extra.get("notes", ()) if note]
    return tuple(found)


def _expectations(sparsity: float) -> tuple[str, ...]:
    """What unstructured zeros buy; sources and measurements are in docs/format.md."""
    smaller = "smaller" if sparsity > 0.34 else "not smaller"
    return (
        f"disk: the sparse-csr file is {smaller} than the dense one; the dense export is not, as "
        "zeros take as many bytes as other numbers",
        "speed: dense kernels (PyTorch, ONNX Runtime, TensorRT) run at the same speed and in the "
        "same memory as before; zeros alone make nothing faster",
        "GPU: unstructured zeros gain nothing on common GPUs; only the 2:4 pattern has kernels",
    )
