"""Audit: does a model that was quantised, fine-tuned, merged or converted still hold a ticket?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slt_compress.anatomy.states import site_weights
from slt_compress.errors import SltError
from slt_compress.evidence.audit_matching import Match, match_sites
from slt_compress.evidence.audit_sources import open_stored
from slt_compress.evidence.audit_tensors import StoredModel
from slt_compress.masks import count_kept
from slt_compress.runtime.opening import open_path
from slt_compress.tickets import Ticket, read_ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAudit:
    """What became of one site.

    Attributes:
        name: the site.
        stored: the name that its weight has in the model; None where it was not found.
        how: `name` or `content`, and how the weight lies where that is another way.
        encoding: how it is stored.
        zeros: how many weights the ticket dropped.
        zeros_lost: how many of these are not 0 now.
        kept: how many weights the ticket kept.
        kept_zeroed: how many of these are 0 now and were not before.
        kept_changed: how many of these have another value now, 0 included; None where the origin
            is not at hand.
        change: root mean square of the change over that of the kept weights; None as above.
    """

    name: str
    stored: str | None
    how: str
    encoding: str
    zeros: int
    zeros_lost: int
    kept: int
    kept_zeroed: int
    kept_changed: int | None
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """All layers, and what they come to.

    Attributes:
        model: what was looked at.
        kind: what it is.
        ticket: the ticket.
        layers: in the order of their names.
        notes: what else a user should know.
    """

    model: str
    kind: str
    ticket: str
    layers: tuple[LayerAudit, ...]
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether every layer was found and every zero of the ticket is 0."""
        return not any(layer.stored is None or layer.zeros_lost for layer in self.layers)

    @property
    def verdict(self) -> str:
        """One or two sentences for a user."""
        return _verdict(self)

    def to_dict(self) -> dict[str, Any]:
        """`{model, kind, ticket, holds, verdict, notes, totals, layers}`."""
        return {
            "model": self.model, "kind": self.kind, "ticket": self.ticket, "holds": self.holds,
            "verdict": self.verdict, "notes": list(self.notes), "totals": self.totals(),
            "layers": [asdict(layer) for layer in self.layers],
        }  # fmt: skip

    def totals(self) -> dict[str, int | None]:
        """Sums over the layers that were found."""
        seen = [layer for layer in self.layers if layer.stored is not None]
        changed = [layer.kept_changed for layer in seen]
        return {
            "layers": len(self.layers),
            "layers_found": len(seen),
            "zeros": sum(layer.zeros for layer in seen),
            "zeros_lost": sum(layer.zeros_lost for layer in seen),
            "kept": sum(layer.kept for layer in seen),
            "kept_zeroed": sum(layer.kept_zeroed for layer in seen),
            "kept_changed": None if None in changed else sum(count or 0 for count in changed),
        }


def audit_model(path: str | Path, ticket: str | Path, *, origin: str | Path | None = None) -> Audit:
    """Compare a model with the ticket that it was masked by.

    Args:
        path: a folder or file of safetensors (quantised by bitsandbytes, quanto, torchao,
            compressed-tensors, GPTQ or AWQ, or not), a GGUF or ONNX file, or an export.
        ticket: the folder of the ticket.
        origin: where the origin's weights are read from instead of the recorded place. Where they
            cannot be had, changes of kept weights are not told.

    Raises:
        SltError: one of the three cannot be read.
    """
    found = read_ticket(ticket)
    weights, reason = masked_weights(Path(ticket), found, origin)
    model = open_stored(Path(path))
    known = found.masks if weights is None else weights
    matches = match_sites(known, model)
    layers = tuple(
        _compare(name, found.masks[name], model, matches.get(name),
                 None if weights is None else weights[name])
        for name in sorted(found.masks)
    )  # fmt: skip
    notes = (*model.notes, *([f"kept weights were not compared: {reason}"] if reason else []))
    return Audit(model=str(path), kind=model.kind, ticket=str(ticket), layers=layers, notes=notes)


def masked_weights(
    folder: Path, ticket: Ticket, origin: str | Path | None
) -> tuple[Mapping[str, Tensor] | None, str]:
    """The masked weights of all sites, or None and why they are not at hand."""
    try:
        opened = open_path(folder, origin=origin)
    except SltError as error:
        if origin is not None:
            raise
        return None, str(error)
    shapes = {name: tuple(mask.shape) for name, mask in ticket.masks.items()}
    return site_weights(opened.module, shapes), ""


def _compare(
    name: str, mask: Tensor, model: StoredModel, match: Match | None, before: Tensor | None
) -> LayerAudit:
    kept = count_kept(mask)
    zeros = mask.numel() - kept
    if match is None:
        return LayerAudit(name=name, stored=None, how="not found", encoding="", zeros=zeros,
                          zeros_lost=0, kept=kept, kept_zeroed=0, kept_changed=None,
                          change=None)  # fmt: skip
    stored = model.weights[match.key]
    now = match.read(stored, tuple(mask.shape))
    zero = now == 0
    was_zero = torch.zeros_like(mask) if before is None else before == 0
    changed, change = (None, None) if before is None else _change(now, before, mask)
    return LayerAudit(
        name=name,
        stored=match.key,
        how=match.turned,
        encoding=_encoding(stored.encoding, now),
        zeros=zeros,
        zeros_lost=count_kept(~mask & ~zero),
        kept=kept,
        kept_zeroed=count_kept(mask & zero & ~was_zero),
        kept_changed=changed,
        change=change,
    )


def _change(now: Tensor, before: Tensor, mask: Tensor) -> tuple[int, float]:
    """How many kept weights have another value, and by how much in the root mean square."""
    wanted, here = before[mask].double(), now[mask].double()
    same = (here == wanted) | (here.isnan() & wanted.isnan())
    size = float(wanted.norm())
    return count_kept(~same), float((here - wanted).norm()) / size if size else 0.0


def _encoding(encoding: str, now: Tensor) -> str:
    return str(now.dtype).removeprefix("torch.") if encoding == "plain" else encoding


def _verdict(audit: Audit) -> str:
    totals = audit.totals()
    zeros, lost = totals["zeros"] or 0, totals["zeros_lost"] or 0
    missing = [layer.name for layer in audit.layers if layer.stored is None]
    if not totals["layers_found"]:
        return "None of the ticket's layers was found in this model: it is another one."
    said = [_zeros_clause(zeros, lost), _kept_clause(audit, totals)]
    if missing:
        said.append(f"{len(missing)} of {len(audit.layers)} layers were not found, "
                    f"first {missing[0]}.")  # fmt: skip
    return " ".join(said)


def _zeros_clause(zeros: int, lost: int) -> str:
    if not lost:
        return f"The ticket holds: all {zeros:,} of its zeros are 0."
    word = "The ticket is lost" if lost > 0.5 * zeros else "The ticket holds in part"
    return f"{word}: {lost:,} of its {zeros:,} zeros ({lost / zeros:.1%}) are not 0 any more."


def _kept_clause(audit: Audit, totals: Mapping[str, int | None]) -> str:
    kept, zeroed, changed = totals["kept"] or 0, totals["kept_zeroed"] or 0, totals["kept_changed"]
    became = f"{zeroed:,} of the {kept:,} kept weights ({zeroed / max(kept, 1):.2%}) became 0"
    if changed is None:
        return f"{became}, those included that were 0 before." if zeroed else "No kept weight is 0."
    if not changed:
        return f"Every one of the {kept:,} kept weights has its value."
    largest = max((layer.change or 0.0 for layer in audit.layers), default=0.0)
    by = f"{changed:,} of the {kept:,} kept weights ({changed / max(kept, 1):.1%}) changed, by up "
    return f"{by}to {largest:.2%} of a layer's norm" + (f"; {became}." if zeroed else ".")
