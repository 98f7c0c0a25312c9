"""Write a ticket folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from slt_compress.errors import TicketError
from slt_compress.masks import count_kept, pack_bits
from slt_compress.storage.files import (
    atomic_folder,
    json_text,
    sha256_file,
    write_json,
    write_safetensors,
)
from slt_compress.tickets.content import TicketContent
from slt_compress.tickets.places import (
    BUFFER_PREFIX,
    FLIP_SUFFIX,
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
from slt_compress.tickets.reading import Ticket, read_ticket
from slt_compress.tickets.records import Counts, SiteFacts, SiteRecord, Units


def write_ticket(
    path: Path, content: TicketContent, *, run: Mapping[str, object] | None = None
) -> Ticket:
    """Write a ticket folder, whole or not at all, and read it back.

    Args:
        path: the folder to make; it must not exist, or be empty.
        content: what equal searches write alike.
        run: seconds, dates, paths, machine: whatever may differ between equal runs.

    Raises:
        TicketError: the path is taken, or the parts contradict each other.
    """
    manifest = _manifest(content)
    with _new_folder(path) as folder:
        _write_masks(folder / MASKS, content)
        files = _write_groups(folder, content)
        (folder / "README.md").write_bytes(content.card.encode())
        write_json(folder / "run.json", run or {})
        write_json(folder / MANIFEST, {**manifest, "files": files})
    return read_ticket(path)


def _manifest(content: TicketContent) -> dict[str, Any]:
    """The manifest but for the hashes of the files."""
    sites, counts = _site_records(content), _counts(content)
    return {
        "kind": KIND[0],
        "version": _version(content),
        "origin": content.origin,
        "gains": content.gains,
        "budget": content.budget,
        "recipe": content.recipe,
        "metrics": content.metrics,
        "controls": content.controls,
        "skipped": content.skipped,
        "weights_hash": content.weights_hash,
        "extra": {} if content.extra is None else content.extra.to_dict(),
        "counts": counts.to_dict(),
        "sites": {name: site.to_dict() for name, site in sites.items()},
        "buffers": sorted(content.buffers),
        "stored": sorted(content.stored),
        **_trained(content),
    }


def _trained(content: TicketContent) -> dict[str, Any]:
    """What was trained beside the mask, where anything was."""
    gains = {name: gains.to_dict() for name, gains in content.unit_gains.items()}
    return {
        **({"unit_gains": gains} if gains else {}),
        **({"tuned": sorted(content.tuned)} if content.tuned else {}),
    }


def _version(content: TicketContent) -> int:
    """The oldest version whose readers understand this ticket."""
    if any(site.order is not None for site in content.sites.values()):
        return 4
    if content.unit_gains or content.tuned:
        return 3
    return 2 if content.masks.flips else 1


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    try:
        with atomic_folder(path) as folder:
            yield folder
    except FileExistsError as cause:
        raise TicketError(f"cannot write a ticket: {cause}") from cause
    except (OSError, SafetensorError) as cause:
        raise TicketError(f"cannot write a ticket to {path}: {cause}") from cause


def _site_records(content: TicketContent) -> dict[str, SiteRecord]:
    masks, units = content.masks, content.units or {}
    lost = sorted(content.sites.keys() - masks.keys())
    if lost:
        raise TicketError(f"no mask was given for the sites {lost}")
    return {
        name: SiteRecord(
            facts=content.sites.get(name, SiteFacts()),
            shape=tuple(mask.shape),
            kept=count_kept(mask),
            total=mask.numel(),
            flips=count_kept(masks.flips[name]) if name in masks.flips else 0,
            units=units.get(name),
        )
        for name, mask in masks.items()
    }


def _counts(content: TicketContent) -> Counts:
    masks, units = content.masks, content.units
    return Counts(
        kept=masks.kept,
        gated=masks.total,
        parameters=content.parameters,
        flips=masks.flipped,
        gains=sum(gains.count for gains in content.unit_gains.values()),
        tuned=sum(tensor.numel() for tensor in content.tuned.values()),
        units=None if units is None else Units(
            kept=sum(entry.kept for entry in units.values()),
            gated=sum(entry.gated for entry in units.values()),
        ),
    )  # fmt: skip


def _write_masks(path: Path, content: TicketContent) -> None:
    masks, buffers, stored = content.masks, content.buffers, content.stored
    tensors = {
        **{name: pack_bits(mask) for name, mask in masks.items()},
        **{name + FLIP_SUFFIX: pack_bits(flip) for name, flip in masks.flips.items()},
        **{BUFFER_PREFIX + name: tensor for name, tensor in buffers.items()},
        **{STORED_PREFIX + name: tensor for name, tensor in stored.items()},
        **{TUNED_PREFIX + name: tensor for name, tensor in content.tuned.items()},
    }
    parts = (masks, masks.flips, buffers, stored, content.tuned)
    if len(tensors) != sum(map(len, parts)):
        raise TicketError("a site has the name of another stored tensor; rename it")
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    facts = {"kind": KIND[0], "version": _version(content), "shapes": shapes}
    write_safetensors(path, tensors, facts)


def _write_groups(folder: Path, content: TicketContent) -> dict[str, str]:
    """Write what carries the result and hash it; not README.md, which a user may edit."""
    if content.probe is None:
        write_safetensors(folder / PROBE, {})
    else:
        content.probe.write(folder / PROBE)
    groups = {SCORES: content.scores, ORIGIN: content.origin_tensors}
    for name, tensors in groups.items():
        if tensors is not None:
            write_safetensors(folder / name, tensors)
    lines = "".join(json_text(record) + "\n" for record in content.history)
    (folder / HISTORY).write_bytes(lines.encode())
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
