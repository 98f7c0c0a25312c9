"""Unpack the masks of a ticket; sizes and counts are compared before they are believed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from torch import Tensor

from slt_compress.masks import Masks, count_kept, unpack_bits
from slt_compress.storage.lazy import LazyMapping
from slt_compress.storage.manifests import Manifest
from slt_compress.tickets.places import FLIP_SUFFIX, MASKS
from slt_compress.tickets.records import SiteRecord


def unpack_masks(
    tensors: Mapping[str, Tensor],
    keys: set[str],
    sites: Mapping[str, SiteRecord],
    manifest: Manifest,
    *,
    lazily: bool,
) -> Masks:
    """Unpack the masks of all sites; sizes are compared before a byte is allocated."""
    signed = sorted(name for name, site in sites.items() if site.flips)
    expected = {*sites, *(name + FLIP_SUFFIX for name in signed)}
    if keys != expected:
        odd = sorted(keys ^ expected)
        raise manifest.damaged(f"{MASKS} and the sites disagree on {odd[:3]}")

    @lru_cache(maxsize=1)  # a mask is often looked up several times in a row
    def unpack(name: str) -> Tensor:
        return _unpack(tensors[name], sites[name], manifest)

    def unpack_flip(name: str) -> Tensor:
        return _unpack_flip(tensors[name + FLIP_SUFFIX], kept[name], sites[name], manifest)

    kept: Mapping[str, Tensor] = LazyMapping(sorted(sites), unpack)
    flips: Mapping[str, Tensor] = LazyMapping(signed, unpack_flip)
    if lazily:
        return Masks.made(kept, flips)
    return Masks(kept, flips)


def _unpack(packed: Tensor, site: SiteRecord, manifest: Manifest) -> Tensor:
    if packed.shape != ((math.prod(site.shape) + 7) // 8,):  # before a huge shape overflows
        raise manifest.damaged(
            f"a mask of {tuple(packed.shape)} bytes does not fit the shape {site.shape}"
        )
    try:
        mask = unpack_bits(packed, site.shape)
    except ValueError as cause:
        raise manifest.damaged(str(cause)) from cause
    if (site.kept, site.total) != (count_kept(mask), mask.numel()):
        raise manifest.damaged(
            f"the counts of a site of shape {site.shape} are not those of its mask"
        )
    return mask


def _unpack_flip(packed: Tensor, mask: Tensor, site: SiteRecord, manifest: Manifest) -> Tensor:
    try:
        flip = unpack_bits(packed, site.shape)
    except ValueError as cause:
        raise manifest.damaged(str(cause)) from cause
    if bool((flip & ~mask).any()):
        raise manifest.damaged("a weight is flipped that its mask does not keep")
    if site.flips != count_kept(flip):
        raise manifest.damaged(f"it counts {site.flips} flips where there are {count_kept(flip)}")
    return flip
