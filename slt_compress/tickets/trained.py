"""What a ticket holds that was trained beside its mask: gains of units, and tuned parameters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from slt_compress.masks import Masks
from slt_compress.sites.unit_gains import UnitGains, count_gains, parse_unit_gains
from slt_compress.storage.manifests import Manifest, is_count
from slt_compress.tickets.records import Counts, SiteRecord


def tuned_names(manifest: Manifest) -> list[str]:
    """The parameters that were tuned."""
    return manifest.names("tuned") if "tuned" in manifest.values and _knows(manifest) else []


def _knows(manifest: Manifest) -> bool:
    """Whether the version of a ticket has trained numbers: an older one may use the keys freely."""
    return is_count(manifest.values.get("version"), least=3)


def checked_unit_gains(
    masks: Masks, sites: Mapping[str, SiteRecord], counts: Counts, manifest: Manifest
) -> dict[str, UnitGains]:
    """The gains of units, which exactly the kept units of a site have.

    Raises:
        SltError: they are damaged.
    """
    shapes = {name: site.shape for name, site in sites.items()}
    unit_gains = parse_unit_gains(manifest, shapes) if _knows(manifest) else {}
    for name, gains in unit_gains.items():
        if not gains.fit(masks[name]):
            raise manifest.damaged(f"the units of {name} with a gain are not those it keeps")
        if name in manifest.object("gains"):
            raise manifest.damaged(f"{name} has a gain of its own and gains of its units")
    if counts.gains != count_gains(unit_gains):
        raise manifest.damaged(f"it counts {counts.gains} gains of units and holds others")
    return unit_gains


def check_tuned(
    tuned: Mapping[str, Tensor], masks: Masks, counts: Counts, manifest: Manifest
) -> None:
    """Refuse tuned parameters that are sites, or are not as many numbers as are counted.

    Raises:
        SltError: they are damaged.
    """
    for name in tuned:
        if name in masks:
            raise manifest.damaged(f"{name} is a site and cannot be tuned")
    if counts.tuned != sum(tensor.numel() for tensor in tuned.values()):
        raise manifest.damaged(f"it counts {counts.tuned} tuned numbers and holds others")
