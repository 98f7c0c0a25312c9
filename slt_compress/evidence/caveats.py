"""Caveats: what a reader of a report should know before trusting its figures."""

from __future__ import annotations

from slt_compress.evidence.verdicts import is_chance
from slt_compress.storage.manifests import is_count
from slt_compress.tickets import SiteRecord, Ticket

# How many layers with empty rows are named one by one.
_LISTED = 5
# Schemes whose magnitudes are all equal within a layer, so that ranking by them says nothing.
_EQUAL_MAGNITUDES = ("signed-constant", "random")


def place(entry: tuple[str, SiteRecord]) -> tuple[int, str]:
    """Sorts sites in the order of the model, which the manifest's sorted keys do not keep."""
    name, site = entry
    return -1 if site.facts.index is None else site.facts.index, name


def caveats(ticket: Ticket) -> list[str]:
    """The warnings of the report of a ticket, a sentence each."""
    dead = [name for name, site in sorted(ticket.sites.items(), key=place) if not site.kept]
    empty = _empty_rows(ticket)
    warnings = [f"{name} is dead: none of its weights is kept" for name in dead]
    warnings += empty[:_LISTED]
    if len(empty) > _LISTED:
        warnings.append(f"{len(empty) - _LISTED} more layers have empty rows")
    warnings += _without_effect(ticket)
    warnings += _at_chance(ticket)
    init = ticket.origin.get("init")
    if isinstance(init, dict) and init.get("scheme") in _EQUAL_MAGNITUDES:
        warnings.append(
            "the control 'magnitude' is uninformative: all weights of a layer have one magnitude"
        )
    return [*warnings, *ticket.extra.notes]


def _empty_rows(ticket: Ticket) -> list[str]:
    """A sentence for each layer that lost all weights of some of its rows."""
    sentences: list[str] = []
    if ticket.budget.get("pattern") in ("neuron", "channel"):
        return sentences  # rows are the units of the pattern, and `units` counts them
    for name, mask in ticket.masks.items():
        rows = mask.reshape(len(mask), -1)
        dead = len(rows) - int(rows.numpy().any(axis=1).sum())
        if 0 < dead < len(rows):
            sentences.append(f"{name}: {dead} of {len(rows)} rows (first dimension) are empty")
    return sentences


def _at_chance(ticket: Ticket) -> list[str]:
    """A sentence where the masked model does no better than guessing."""
    data, classes = ticket.extra.data or {}, ticket.origin.get("num_classes")
    splits, accuracy = data.get("splits"), (ticket.metrics.get("hard") or {}).get("accuracy")
    examples = splits.get("test") if isinstance(splits, dict) else None
    if accuracy is None or not is_count(classes, least=2) or not is_count(examples):
        return []
    if not is_chance(accuracy, classes, examples):
        return []
    return [
        f"the masked model is right in {accuracy:.1%} of {examples:,} examples, which is no better "
        f"than guessing among {classes} classes"
    ]


def _without_effect(ticket: Ticket) -> list[str]:
    """What the removed units of a pattern leave without effect elsewhere."""
    silenced, unknown = ticket.extra.silenced, ticket.extra.neighbours_unknown
    sentences: list[str] = []
    if silenced:
        sentences.append(
            f"{sum(silenced.values()):,} kept weights of {len(silenced)} layers have no effect: "
            "they read or feed removed units only"
        )
    if unknown:
        sentences.append(
            f"the neighbours of {len(unknown)} layers ({unknown[0]}, …) are not known: weights "
            "that their removed units leave without effect are not counted"
        )
    return sentences
