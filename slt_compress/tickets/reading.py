"""Read a ticket folder, believing nothing that was not checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from slt_compress.errors import TicketError
from slt_compress.masks import Masks
from slt_compress.sites.unit_gains import UnitGains, factors_of
from slt_compress.storage.files import parse_json, read_bytes, read_safetensors
from slt_compress.storage.lazy import LazyTensors
from slt_compress.storage.manifests import Manifest, check_manifest, is_finite
from slt_compress.storage.probe import Probe, read_probe_file
from slt_compress.tickets.places import (
    BUFFER_PREFIX,
    HISTORY,
    KIND,
    MANIFEST,
    MASKS,
    ORIGIN,
    PROBE,
    SCORES,
    STORED_PREFIX,
    TUNED_PREFIX,
)
from slt_compress.tickets.records import (
    Counts,
    Extra,
    Metrics,
    SiteRecord,
    parse_counts,
    parse_extra,
    parse_metrics,
    parse_sites,
)
from slt_compress.tickets.trained import check_tuned, checked_unit_gains, tuned_names
from slt_compress.tickets.unpacking import unpack_masks


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a search found, and everything needed to build the masked model again.

    Attributes:
        path: the folder.
        version: of the format it is written in.
        hash: of the manifest, and so of everything a ticket guarantees, as 64 hex digits.
        origin: where the frozen weights come from.
        masks: which weights survive, and which of them with their sign flipped.
        gains: one factor per site of a random init; empty for pretrained weights.
        buffers: buffers that the search changed, such as BatchNorm statistics.
        stored: tensors of a random init that no seed gives.
        budget: the budget as asked for.
        recipe: the resolved recipe, without output paths.
        metrics: of the dense, the hard-masked and the soft-masked model.
        controls: metrics of random, shuffled and magnitude masks.
        skipped: parameters that were not gated, with the reason.
        weights_hash: of the frozen weights of all sites.
        counts: kept and gated weights, and parameters of the model.
        sites: what the manifest records of every site.
        extra: facts that no mask depends on.
        unit_gains: one factor per kept unit, for the sites that have them in place of `gains`.
        tuned: parameters that were trained beside the mask.
        manifest: the whole manifest, opened once.
    """

    path: Path
    version: int
    hash: str
    origin: Mapping[str, object]
    masks: Masks
    gains: Mapping[str, float]
    buffers: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    budget: Mapping[str, object]
    recipe: Mapping[str, object]
    metrics: Metrics
    controls: Metrics
    skipped: Mapping[str, str]
    weights_hash: str
    counts: Counts
    sites: Mapping[str, SiteRecord]
    extra: Extra
    unit_gains: Mapping[str, UnitGains] = field(default_factory=dict)
    tuned: Mapping[str, Tensor] = field(default_factory=dict)
    manifest: Manifest = field(repr=False, compare=False)

    @property
    def orders(self) -> dict[str, tuple[int, ...]]:
        """The orders of inputs in which masks are N:M, of the sites that have one."""
        orders = {name: site.facts.order for name, site in self.sites.items()}
        return {name: order for name, order in orders.items() if order is not None}

    @property
    def factors(self) -> Mapping[str, float | Tensor]:
        """What the kept weights of a site are multiplied by, for the sites that have it."""
        return factors_of(self.gains, self.unit_gains)


def read_ticket(path: str | Path, *, lazily: bool = False) -> Ticket:
    """Read a ticket folder, checking version, hashes, sizes and counts.

    With `lazily` a mask is read and unpacked whenever it is looked up, and not held in between.

    Raises:
        TicketError: the folder is not a ticket, is from a newer version, incomplete or damaged.
    """
    folder = Path(path)
    manifest, digest = open_manifest(folder)
    for name in manifest.object("files"):
        manifest.checked_file(name)
    file = manifest.checked_file(MASKS)
    tensors = LazyTensors([file], TicketError) if lazily else read_safetensors(file, TicketError)
    keys, sites, counts = set(tensors), parse_sites(manifest), parse_counts(manifest)
    buffers = _take(tensors, keys, BUFFER_PREFIX, manifest.names("buffers"), manifest)
    stored = _take(tensors, keys, STORED_PREFIX, manifest.names("stored"), manifest)
    tuned = _take(tensors, keys, TUNED_PREFIX, tuned_names(manifest), manifest)
    masks = unpack_masks(tensors, keys, sites, manifest, lazily=lazily)
    _check_counts(counts, masks, manifest)
    unit_gains = checked_unit_gains(masks, sites, counts, manifest)
    check_tuned(tuned, masks, counts, manifest)
    return Ticket(
        path=folder,
        version=manifest.integer("version"),
        hash=digest,
        origin=manifest.object("origin"),
        masks=masks,
        gains=_checked_gains(masks, manifest),
        buffers=buffers,
        stored=stored,
        budget=manifest.object("budget"),
        recipe=manifest.object("recipe"),
        metrics=parse_metrics(manifest, "metrics"),
        controls=parse_metrics(manifest, "controls"),
        skipped=manifest.object("skipped"),
        weights_hash=manifest.text("weights_hash"),
        counts=counts,
        sites=sites,
        extra=parse_extra(manifest),
        unit_gains=unit_gains,
        tuned=tuned,
        manifest=manifest,
    )


def read_probe(ticket: Ticket | str | Path) -> Probe | None:
    """Read the probe of a ticket; None where the ticket was written without inputs.

    Raises:
        TicketError: it is missing or damaged.
    """
    file = _manifest_of(ticket).checked_file(PROBE)
    return read_probe_file(file, TicketError)


def read_scores(ticket: Ticket | str | Path) -> dict[str, Tensor]:
    """Read the scores of a ticket that was written with them.

    Raises:
        TicketError: they are missing or damaged.
    """
    return read_safetensors(_manifest_of(ticket).checked_file(SCORES), TicketError)


def read_origin_tensors(ticket: Ticket | str | Path) -> dict[str, Tensor]:
    """Read the origin's weights from a ticket that was written with them.

    Raises:
        TicketError: they are missing or damaged.
    """
    return read_safetensors(_manifest_of(ticket).checked_file(ORIGIN), TicketError)


def read_history(ticket: Ticket | str | Path) -> list[dict[str, Any]]:
    """Read the records of the steps of a search.

    Raises:
        TicketError: they are missing or damaged.
    """
    file = _manifest_of(ticket).checked_file(HISTORY)
    lines = file.read_bytes().splitlines()
    return [parse_json(line, f"{file}:{i}", TicketError) for i, line in enumerate(lines, 1)]


def ticket_hash(path: str | Path) -> str:
    """The hash of the ticket in a folder, without reading its masks.

    Raises:
        TicketError: the folder is not a ticket.
    """
    return open_manifest(Path(path))[1]


def _manifest_of(ticket: Ticket | str | Path) -> Manifest:
    return ticket.manifest if isinstance(ticket, Ticket) else open_manifest(Path(ticket))[0]


def open_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a ticket, of which nothing but kind and version is checked, and its hash.

    Raises:
        TicketError: the folder is no ticket, or from a newer version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise TicketError(f"{folder} is not a ticket: it has no {MANIFEST}")
    content = read_bytes(file, TicketError)
    values = parse_json(content, str(file), TicketError)
    digest = hashlib.sha256(content).hexdigest()
    return check_manifest(values, file, KIND, TicketError), digest


def _take(
    tensors: Mapping[str, Tensor], keys: set[str], prefix: str, names: list[str], manifest: Manifest
) -> dict[str, Tensor]:
    """Take the tensors with a prefix and remove their keys from `keys`; none may be missing."""
    missing = [name for name in names if prefix + name not in keys]
    if missing:
        raise manifest.damaged(f"{MASKS} lacks {prefix}{missing[0]}")
    keys -= {prefix + name for name in names}
    return {name: tensors[prefix + name] for name in names}


def _check_counts(counts: Counts, masks: Masks, manifest: Manifest) -> None:
    """Compare the recorded totals with those of the masks."""
    actual = {"kept": masks.kept, "gated": masks.total, "flips": masks.flipped}
    recorded = {"kept": counts.kept, "gated": counts.gated, "flips": counts.flips}
    for key, count in recorded.items():
        if count != actual[key]:
            raise manifest.damaged(f"it counts {count} {key} weights, the masks {actual[key]}")


def _checked_gains(masks: Masks, manifest: Manifest) -> dict[str, float]:
    gains = manifest.object("gains")
    for name, gain in gains.items():
        if name not in masks:
            raise manifest.damaged(f"it has a gain for {name}, which is not a site")
        if not is_finite(gain):
            raise manifest.damaged(f"the gain of {name} is {str(gain)[:40]}")
    return gains
