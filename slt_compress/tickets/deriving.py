"""Tickets made without a search, from two other tickets."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from torch import Tensor

from slt_compress.errors import TicketError
from slt_compress.masks import Masks
from slt_compress.sites.budget import Budget
from slt_compress.tickets import Extra, Ticket, TicketContent, read_ticket, write_ticket
from slt_compress.tickets.card import derived_card
from slt_compress.tickets.origin import stored_of

Operation = Literal["and", "or"]
_OPERATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"and": operator.and_, "or": operator.or_}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDifference:
    """How much two masks of one site have in common; `kept` is of both, `both` of either."""

    name: str
    total: int
    kept: tuple[int, int]
    both: int
    overlap: float
    iou: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How much two masks of the same weights have in common.

    Attributes:
        overlap: share of the first one's kept weights that the second keeps too.
        iou: intersection over union of the kept weights.
        layers: the same per site.
    """

    overlap: float
    iou: float
    layers: tuple[SiteDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings and lists, ready for JSON."""
        return asdict(self)


def difference(first: str | Path, second: str | Path) -> Difference:
    """Compare the masks of two tickets.

    Raises:
        TicketError: a folder is no ticket, or they are of different weights.
    """
    left, right = _same_weights(first, second)
    ones, twos = left.masks, right.masks
    places = {name: site.facts.index or 0 for name, site in left.sites.items()}
    layers = []
    for name in sorted(ones, key=lambda name: (places[name], name)):
        one, two = (Masks({name: masks[name]}) for masks in (ones, twos))
        layers.append(
            SiteDifference(
                name=name,
                total=one.total,
                kept=(one.kept, two.kept),
                both=int((one[name] & two[name]).count_nonzero()),
                overlap=one.overlap(two),
                iou=one.iou(two),
            )
        )
    return Difference(overlap=ones.overlap(twos), iou=ones.iou(twos), layers=tuple(layers))


def merge(first: str | Path, second: str | Path, op: Operation, out: str | Path) -> Ticket:
    """Write a ticket that keeps what both keep (`and`), or what either keeps (`or`).

    Buffers that a search changed are those of the first; gains are those of the new densities.
    Nothing is measured.

    Raises:
        TicketError: the two are of different weights, signed, hold trained numbers, or keep
            nothing together; or `out` is taken.
    """
    if op not in get_args(Operation):
        raise TicketError(f"unknown operation {op!r}; known: {', '.join(get_args(Operation))}")
    left, right = _same_weights(first, second)
    if left.masks.flips or right.masks.flips:
        raise TicketError("signed tickets cannot be merged: their flips may contradict each other")
    if any(ticket.unit_gains or ticket.tuned for ticket in (left, right)):
        raise TicketError(
            "tickets with gains of units or tuned parameters cannot be merged: these were trained "
            "for one mask"
        )
    combine = _OPERATIONS[op]
    masks = Masks({name: combine(mask, right.masks[name]) for name, mask in left.masks.items()})
    dead = [name for name in left.gains if not masks.density_of(name)]
    if not masks.kept or dead:
        raise TicketError(f"nothing is kept by both{f' in {dead[0]}' if dead else ''}")
    return write_derived(
        Path(out),
        masks,
        left,
        gains={name: masks.density_of(name) ** -0.5 for name in left.gains},
        note=f"merged by `{op}` of the tickets {left.hash} and {right.hash}; nothing was measured",
    )


def write_derived(
    out: Path, masks: Masks, of: Ticket, *, gains: Mapping[str, float], note: str
) -> Ticket:
    """Write a ticket with other masks of the weights of another, without any evidence.

    Raises:
        TicketError: `out` is taken.
    """
    all_stored = not of.stored and bool(stored_of(of))
    content = TicketContent(
        origin=of.origin,
        masks=masks,
        gains=gains,
        buffers=of.buffers,
        stored=of.stored,
        origin_tensors=stored_of(of) if all_stored else None,
        budget=asdict(Budget(density=masks.kept / masks.total)),
        recipe={**of.recipe, "target_sparsity": 1.0 - masks.kept / masks.total},
        metrics={"dense": None, "hard": None, "soft": None},
        controls={},
        skipped=of.skipped,
        weights_hash=of.weights_hash,
        parameters=of.counts.parameters,
        sites={name: replace(site.facts, order=None) for name, site in of.sites.items()},
        extra=Extra(
            environment=of.extra.environment,
            dense_nbytes=of.extra.dense_nbytes,
            notes=(note,),
        ),
        card=derived_card(of.origin, masks, note),
    )
    return write_ticket(out, content)


def _same_weights(first: str | Path, second: str | Path) -> tuple[Ticket, Ticket]:
    left, right = read_ticket(first), read_ticket(second)
    if left.weights_hash != right.weights_hash or left.masks.keys() != right.masks.keys():
        raise TicketError(f"{first} and {second} are not of the same weights")
    return left, right
