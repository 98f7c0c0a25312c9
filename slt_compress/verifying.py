"""Verify: prove that a ticket or artifact is the masked origin and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.artifact import PROBE
from slt_compress.checkpoints import Checkpoint, reopen
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.files import read_safetensors, sha256_tensors
from slt_compress.gating import masked_weight
from slt_compress.masks import Masks
from slt_compress.objectives import forward_of
from slt_compress.runtime import Opened, environment, open_origin, open_path, site_weights
from slt_compress.ticket import read_probe, read_ticket

# Largest difference of probe logits, relative to the largest logit, that is still the same model
# where versions, device or threads differ.
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The checks of a folder, in order; `ok` when all of them are."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """`{ok, checks: [{name, ok, detail}]}`."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def verify_path(
    path: str | Path, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Verification:
    """Check a ticket or artifact against its origin.

    Damage is a failed check.

    Raises:
        SltError: the folder does not exist, or the origin cannot be reached.
    """
    try:
        opened = open_path(path, origin=origin, model=model)
    except (TicketError, ArtifactError) as error:
        return Verification(path=Path(path), checks=(_failed("files", str(error)),))
    checks = [Check(name="files", ok=True, detail="version, hashes, sizes and counts agree")]
    source = _origin(opened, origin, model)
    checks += _against_origin(opened, source)
    checks.append(_logits(opened))
    return Verification(path=Path(path), checks=tuple(checks))


def _failed(name: str, detail: str) -> Check:
    return Check(name=name, ok=False, detail=detail)


def _origin(opened: Opened, origin: str | Path | None, model: nn.Module | None) -> Checkpoint:
    """The origin with its weights untouched; a ticket folder may stand in for it."""
    if opened.ticket is not None:
        return open_origin(opened.ticket, origin=origin, model=model)
    if origin is not None and (Path(origin) / "ticket.json").is_file():
        return open_origin(read_ticket(origin), model=model)
    record = opened.provenance.get("origin")
    if not isinstance(record, Mapping):
        raise ArtifactError(f"{opened.path} does not record its origin")
    return reopen(record, override=origin)


def _against_origin(opened: Opened, source: Checkpoint) -> Iterator[Check]:
    """The checks that need the origin's weights."""
    masks = opened.masks if opened.masks is not None else _nonzero_masks(opened, source)
    counts = opened.provenance["counts"]
    yield _count(opened, masks, counts)
    weights = site_weights(source.module, masks)
    same = sha256_tensors(weights) == opened.provenance["weights_hash"]
    yield Check(
        name="origin",
        ok=same,
        detail=f"{source.source}: the frozen weights "
        + ("have the recorded hash" if same else "do not have the recorded hash"),
    )
    yield _weights(opened, masks, weights)
    yield _others(opened, source, masks)


def _nonzero_masks(opened: Opened, source: Checkpoint) -> Masks:
    """Masks of a dense export, which stores none: what is not zero, or was zero at the origin."""
    names = [name for name, entry in opened.entries.items() if "kept" in entry]
    shapes = {name: source.module.get_parameter(name) for name in names}
    here = site_weights(opened.module, shapes)
    return Masks({name: weight != 0 for name, weight in here.items()})


def _count(opened: Opened, masks: Masks, counts: Mapping[str, Any]) -> Check:
    density = float(opened.provenance["budget"]["density"])
    wanted = max(1, round(density * counts["gated"]))
    dense = opened.masks is None
    # a kept weight may itself be 0; a dense export cannot tell it from a removed one
    zeros = counts["kept"] - masks.kept if dense else 0
    ok = masks.kept + zeros == wanted == counts["kept"] and masks.total == counts["gated"]
    return Check(
        name="count",
        ok=ok and zeros >= 0,
        detail=f"{masks.kept + zeros:,} of {masks.total:,} gated weights are kept, "
        f"the budget of {density:g} asks for {wanted:,}"
        + (f"; {zeros} of them are 0 at the origin" if zeros else ""),
    )


def _weights(opened: Opened, masks: Masks, weights: Mapping[str, Tensor]) -> Check:
    """Every kept weight has the bits of gain * origin; every other one is 0."""
    gains = opened.provenance["gains"]
    here = site_weights(opened.module, masks)
    wrong = [
        name
        for name, mask in masks.items()
        if not _same_bits(here[name], masked_weight(weights[name], mask, gains.get(name, 1.0)))
    ]
    times = "the origin's times the recorded gain" if gains else "the origin's"
    good = f"every kept weight is bit-identical to {times}, every other one is 0"
    bad = f"{len(wrong)} of {len(masks)} sites differ from the origin, first {wrong[:1]}"
    return Check(name="weights", ok=not wrong, detail=bad if wrong else good)


def _others(opened: Opened, source: Checkpoint, masks: Masks) -> Check:
    """Parameters that were not gated are the origin's too."""
    here: dict[str, Tensor] = dict(opened.module.named_parameters())
    there: dict[str, Tensor] = dict(source.module.named_parameters())
    if opened.provenance["origin"].get("kind") == "random" and opened.ticket is None:
        stored = set(source.stored)  # known to the ticket only
        there = {name: value for name, value in there.items() if name not in stored}
    others = [name for name in there if name not in masks]
    wrong = [name for name in others if name not in here or not _same_bits(here[name], there[name])]
    detail = f"{len(others) - len(wrong)} of {len(others)} ungated parameters are the origin's bits"
    return Check(
        name="ungated", ok=not wrong, detail=detail + "".join(f"; not {n}" for n in wrong[:1])
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.detach().contiguous().view(integer), b.detach().contiguous().view(integer))


def _logits(opened: Opened) -> Check:
    probe = _read_probe(opened)
    if not probe:
        return Check(name="logits", ok=True, detail="not tested: no probe was stored")
    wanted = probe.pop("logits")
    forward = forward_of(opened.checkpoint.family, opened.checkpoint.task)
    with torch.inference_mode():
        found = forward(opened.module, probe)
    if found.shape != wanted.shape:
        return _failed("logits", f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    if torch.equal(found, wanted):
        return Check(name="logits", ok=True, detail=f"bit-identical on {len(wanted)} probe inputs")
    worst = float((found.double() - wanted.double()).abs().max())
    bound = TOLERANCE * float(wanted.double().abs().max())
    if environment(opened.module) == opened.provenance.get("environment"):
        return _failed("logits", f"differ by up to {worst:.2e} in the environment of the search, "
                       "where they must be bit-identical")  # fmt: skip
    detail = (
        f"differ by up to {worst:.2e}, within 1e-4 of the largest logit is {bound:.2e} "
        "(tested so because versions, device or threads are not those of the search)"
    )
    return Check(name="logits", ok=worst <= bound, detail=detail)


def _read_probe(opened: Opened) -> dict[str, Tensor]:
    if opened.ticket is not None:
        return read_probe(opened.path)
    path = opened.path / PROBE
    return read_safetensors(path, ArtifactError) if path.is_file() else {}
