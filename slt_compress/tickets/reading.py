"""Read a ticket folder, believing nothing that was not checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from slt_compress.errors import TicketError
from slt_compress.masks import Masks, count_kept, unpack_bits
from slt_compress.storage.files import parse_json, read_json, read_safetensors, sha256_file
from slt_compress.storage.lazy import LazyTensors, Made
from slt_compress.storage.manifests import Manifest, as_shape, check_manifest
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
)

_FIELDS = ("origin", "gains", "budget", "recipe", "metrics", "controls", "skipped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """What a search found, and everything needed to make a model of it once more.

    Attributes:
        path: the folder.
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
        summary: the rest of the manifest: `version`, `weights_hash`, `counts`
            (`kept`, `gated`, `parameters`, and `flips` where there are any), `sites`, `files`
            (hashes), `extra`.
    """

    path: Path
    origin: Mapping[str, Any]
    masks: Masks
    gains: Mapping[str, float]
    buffers: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    budget: Mapping[str, Any]
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    controls: Mapping[str, Any]
    skipped: Mapping[str, str]
    summary: Mapping[str, Any]


def read_ticket(path: str | Path, *, lazily: bool = False) -> Ticket:
    """Read a ticket folder, checking version, hashes, sizes and counts.

    With `lazily` a mask is read and unpacked whenever it is looked up, and not held in between.

    Raises:
        TicketError: the folder is no ticket, from a newer version, incomplete or damaged.
    """
    folder = Path(path)
    manifest = _open_manifest(folder)
    for name in manifest.object("files"):
        manifest.checked_file(name)
    file = manifest.checked_file(MASKS)
    tensors = LazyTensors([file], TicketError) if lazily else read_safetensors(file, TicketError)
    keys = set(tensors)
    buffers = _take(tensors, keys, BUFFER_PREFIX, manifest.names("buffers"), manifest)
    stored = _take(tensors, keys, STORED_PREFIX, manifest.names("stored"), manifest)
    masks = _unpack_masks(tensors, keys, manifest, lazily=lazily)
    fields = {name: manifest.object(name) for name in _FIELDS}
    _check_gains(fields["gains"], masks, manifest)
    known = {*_FIELDS, "kind", "buffers", "stored"}
    summary = {key: value for key, value in manifest.values.items() if key not in known}
    return Ticket(
        path=folder, masks=masks, buffers=buffers, stored=stored, summary=summary, **fields
    )


def read_probe(path: str | Path) -> dict[str, Tensor]:
    """Read the probe of a ticket: inputs by argument name, and `logits` of the masked model.

    Raises:
        TicketError: it is missing or damaged.
    """
    return _read_group(path, PROBE)


def read_scores(path: str | Path) -> dict[str, Tensor]:
    """Read the scores of a ticket that was written with them.

    Raises:
        TicketError: they are missing or damaged.
    """
    return _read_group(path, SCORES)


def read_origin_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the origin's weights from a ticket that was written with them.

    Raises:
        TicketError: they are missing or damaged.
    """
    return _read_group(path, ORIGIN)


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Read the records of the steps of a search.

    Raises:
        TicketError: they are missing or damaged.
    """
    file = _open_manifest(Path(path)).checked_file(HISTORY)
    lines = file.read_bytes().splitlines()
    return [parse_json(line, f"{file}:{i}", TicketError) for i, line in enumerate(lines, 1)]


def ticket_hash(path: str | Path) -> str:
    """Hash of the manifest, and so of everything a ticket guarantees, as 64 hex digits.

    Raises:
        TicketError: the folder is no ticket.
    """
    return sha256_file(_open_manifest(Path(path)).where)


def _open_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    if not file.is_file():
        raise TicketError(f"{folder} is no ticket: it has no {MANIFEST}")
    return check_manifest(read_json(file, TicketError), file, KIND, TicketError)


def _read_group(path: str | Path, name: str) -> dict[str, Tensor]:
    file = _open_manifest(Path(path)).checked_file(name)
    return read_safetensors(file, TicketError)


def _take(
    tensors: Mapping[str, Tensor], keys: set[str], prefix: str, names: list[str], manifest: Manifest
) -> dict[str, Tensor]:
    """Take the tensors with a prefix, and their keys out of `keys`, refusing the lack of one."""
    missing = [name for name in names if prefix + name not in keys]
    if missing:
        raise manifest.damaged(f"{MASKS} lacks {prefix}{missing[0]}")
    keys -= {prefix + name for name in names}
    return {name: tensors[prefix + name] for name in names}


def _unpack_masks(
    tensors: Mapping[str, Tensor], keys: set[str], manifest: Manifest, *, lazily: bool
) -> Masks:
    """Unpack the masks of all sites; sizes are compared before a byte is allocated."""
    sites = manifest.object("sites")
    signed = _signed_sites(sites, manifest)
    expected = {*sites, *(name + FLIP_SUFFIX for name in signed)}
    if keys != expected:
        odd = sorted(keys ^ expected)
        raise manifest.damaged(f"{MASKS} and the sites disagree on {odd[:3]}")

    @lru_cache(maxsize=1)  # what is looked up several times in a row
    def unpack(name: str) -> Tensor:
        return _unpack(tensors[name], sites[name], manifest)

    kept: Mapping[str, Tensor] = Made(sorted(sites), unpack)
    kept = kept if lazily else dict(kept)
    flips: Mapping[str, Tensor] = Made(
        signed,
        lambda name: _unpack_flip(tensors[name + FLIP_SUFFIX], kept[name], sites[name], manifest),
    )
    flips = flips if lazily else dict(flips)
    masks = Masks.made(kept, flips) if lazily else Masks(kept, flips)
    counts = manifest.object("counts")
    wanted = {"kept": masks.kept, "gated": masks.total}
    if masks.flips or "flips" in counts:
        wanted["flips"] = masks.flipped
    for key, found in wanted.items():
        if counts.get(key) != found:
            raise manifest.damaged(f"it counts {counts.get(key)} {key} weights, the masks {found}")
    return masks


def _unpack(packed: Tensor, site: object, manifest: Manifest) -> Tensor:
    shape = as_shape(site.get("shape")) if isinstance(site, dict) else None
    if not isinstance(site, dict) or shape is None:
        raise manifest.damaged(f"a site without a shape: {str(site)[:60]}")
    if packed.shape != ((math.prod(shape) + 7) // 8,):
        raise manifest.damaged(f"a mask of {tuple(packed.shape)} bytes is no mask of {shape}")
    try:
        mask = unpack_bits(packed, shape)
    except ValueError as cause:
        raise manifest.damaged(str(cause)) from cause
    if (site.get("kept"), site.get("total")) != (count_kept(mask), mask.numel()):
        raise manifest.damaged(f"the counts of a site of shape {shape} are not those of its mask")
    return mask


def _signed_sites(sites: Mapping[str, Any], manifest: Manifest) -> list[str]:
    """The sites that have flips; only from version 2 on."""
    if manifest.values["version"] < 2:
        return []
    return sorted(n for n, site in sites.items() if isinstance(site, dict) and "flips" in site)


def _unpack_flip(
    packed: Tensor, mask: Tensor, site: Mapping[str, Any], manifest: Manifest
) -> Tensor:
    try:
        flip = unpack_bits(packed, tuple(mask.shape))
    except ValueError as cause:
        raise manifest.damaged(str(cause)) from cause
    if bool((flip & ~mask).any()):
        raise manifest.damaged("a weight is flipped that its mask does not keep")
    if not flip.any() or site["flips"] != count_kept(flip):
        raise manifest.damaged(f"it counts {str(site['flips'])[:40]} flips where there are others")
    return flip


def _check_gains(gains: Mapping[str, Any], masks: Masks, manifest: Manifest) -> None:
    for name, gain in gains.items():
        if name not in masks:
            raise manifest.damaged(f"it has a gain for {name}, which is no site")
        if not isinstance(gain, int | float) or isinstance(gain, bool) or not math.isfinite(gain):
            raise manifest.damaged(f"the gain of {name} is {gain!r}")
