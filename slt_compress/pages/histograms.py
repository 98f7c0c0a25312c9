"""Histograms of the kept and of the removed weights of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from slt_compress.anatomy.states import site_weights
from slt_compress.checkpoints.downloads import cached
from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import SltError
from slt_compress.tickets import Ticket
from slt_compress.tickets.origin import origin_of_ticket

_BINS = 60
_LIMIT = 2 << 30  # bytes of a model that is opened for its histograms
_SAMPLE = 1 << 20  # weights of a layer that are counted; of more, evenly spread ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """Counts of weights in equal bins; the outer bins hold what lies beyond them too.

    Attributes:
        name: of the layer.
        edges: of the bins, one more than there are bins.
        kept, removed: counts for each bin.
        counted: 1 where every weight is counted, else the stride of the sample.
    """

    name: str
    edges: tuple[float, ...]
    kept: tuple[int, ...]
    removed: tuple[int, ...]
    counted: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def histograms(ticket: Ticket, names: Sequence[str]) -> tuple[list[Histogram], str]:
    """Histograms of the origin's weights at some sites, or none and the reason.

    Nothing is downloaded: the origin has to be on this machine.
    """
    missing = _why_not(ticket)
    if missing:
        return [], missing
    try:
        with quiet():
            shapes = {name: tuple(ticket.masks[name].shape) for name in names}
            folder = _cached(ticket) if ticket.origin.get("kind") == "hub" else None
            checkpoint = origin_of_ticket(ticket).open(origin=folder)
            weights = site_weights(checkpoint.module, shapes)
    except (SltError, OSError) as error:
        return [], f"the origin's weights cannot be read here: {error}"
    return list(_made(ticket, weights)), ""


def _made(ticket: Ticket, weights: dict[str, Tensor]) -> Iterator[Histogram]:
    for name, weight in weights.items():
        yield histogram(name, weight, ticket.masks[name])


def _why_not(ticket: Ticket) -> str:
    kind = ticket.origin.get("kind")
    if kind == "module":
        return "the weights are those of a module of your own, which only Python has"
    if kind == "hub" and _cached(ticket) is None:
        return "the origin's weights are on the hub and not in the cache of this machine"
    if (ticket.extra.dense_nbytes or 0) > _LIMIT:
        return f"the model is larger than {_LIMIT >> 30} GiB"
    return ""


def _cached(ticket: Ticket) -> str | None:
    source, revision = ticket.origin.get("source"), ticket.origin.get("revision")
    if not isinstance(source, str) or not isinstance(revision, str):
        return None
    folder = cached(source.removeprefix("timm:"), revision)
    return None if folder is None else str(folder)


def histogram(name: str, weight: Tensor, mask: Tensor) -> Histogram:
    """Counts of the kept and the removed weights of one layer, in bins of one width."""
    stride = max(1, weight.numel() // _SAMPLE)
    values = weight.detach().float().reshape(-1)[::stride].numpy()
    kept = mask.reshape(-1)[::stride].numpy()
    finite = np.isfinite(values)
    values, kept = values[finite], kept[finite]
    reach = float(np.quantile(np.abs(values), 0.999)) if values.size else 0.0
    reach = reach * 1.02 or 1.0
    edges = np.linspace(-reach, reach, _BINS + 1)
    clipped = np.clip(values.astype(np.float64), -reach, reach)
    counts = [np.histogram(clipped[chosen], edges)[0].tolist() for chosen in (kept, ~kept)]
    return Histogram(
        name=name, edges=tuple(float(f"{edge:.6g}") for edge in edges), kept=tuple(counts[0]),
        removed=tuple(counts[1]), counted=stride,
    )  # fmt: skip
