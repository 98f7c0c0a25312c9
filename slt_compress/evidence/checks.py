"""The checks that compare an opened folder with its origin."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from math import isclose
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slt_compress.anatomy.states import set_buffers, set_parameters_, shapes_of, site_weights
from slt_compress.artifacts import Proof
from slt_compress.artifacts.shrinking import prove
from slt_compress.checkpoints import Checkpoint
from slt_compress.errors import ArtifactError
from slt_compress.evidence.configurations import other_configuration
from slt_compress.evidence.pattern_checks import counts_units, pattern_held
from slt_compress.masks import Masks, count_kept, masked_weight
from slt_compress.runtime.masking import apply_masks_
from slt_compress.runtime.opening import Opened
from slt_compress.sites.unit_gains import count_gains
from slt_compress.storage.bits import bits, same_bits
from slt_compress.storage.files import dtype_name, sha256_tensors
from slt_compress.storage.probe import Probe
from slt_compress.tickets.provenance import Provenance

_FP32 = 2.0**-23


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was checked, and the outcome."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The checks of a folder, in order; `ok` if all of them passed."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """`{ok, checks: [{name, ok, detail}]}`."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def failed(name: str, detail: str) -> Check:
    """A check that did not pass."""
    return Check(name=name, ok=False, detail=detail)


def against_origin(
    opened: Opened,
    known: Provenance,
    source: Checkpoint,
    probe: Probe | None,
    absent: Collection[str] = (),
) -> Iterator[Check]:
    """The checks that need the origin's weights; `absent` are parameters that the folder lacks."""
    weights = site_weights(source.module, opened.shapes)
    masks = opened.masks if opened.masks is not None else _stored_masks(opened)
    unseen = _unseen(opened, known, masks, weights)
    yield _count(opened, known, masks, unseen)
    same = sha256_tensors(weights) == known.weights_hash
    random = source.init is not None and opened.ticket is None
    hint = "; --origin TICKET reads the tensors that no seed gives" if random else ""
    other = other_configuration(opened, known.origin, source)
    yield Check(
        name="origin",
        ok=same and other is None,
        detail=f"{source.source}: the frozen weights "
        + ("have the recorded hash" if same else f"do not have the recorded hash{hint}")
        + (f"; {other}" if other is not None else ""),
    )
    ok, detail = pattern_held(known, source.module, masks, weights, stored=opened.masks is not None)
    yield Check(name="pattern", ok=ok, detail=detail)
    if opened.proof is not None:
        yield from _shrunk(opened, opened.proof, known, source, probe)
        return
    if known.unit_gains:
        yield _unit_gains(known, masks, stored=opened.masks is not None)
    yield _weights(opened, known, masks, weights, unseen)
    yield _others(opened, source, [*masks, *absent, *known.tuned])
    if known.tuned:
        yield tuned_check(known, dict(opened.module.named_parameters()), absent)


def _shrunk(
    opened: Opened, proof: Proof, known: Provenance, source: Checkpoint, probe: Probe | None
) -> Iterator[Check]:
    """The checks of a shrunk model, whose tensors are parts of those of the masked origin."""
    here, there = opened.module.state_dict(), source.module.state_dict()
    for name in source.stored:  # only the ticket has these
        if source.init is not None and there[name].shape == here[name].shape:
            there[name].copy_(here[name])
    apply_masks_(source.module, proof.masks, known.factors)
    set_buffers(source.module, proof.buffers)
    set_parameters_(source.module, proof.tuned)
    flips = {name: int(flip.count_nonzero()) for name, flip in proof.masks.flips.items()}
    total = f"{sum(flips.values()):,} kept weights have their sign flipped"
    yield Check(name="flips", ok=flips == dict(known.flips), detail=total)
    run, inputs = opened.checkpoint.forward, {} if probe is None else probe.inputs
    forward = (lambda module: run(module, inputs)) if inputs else None
    for name, ok, detail in prove(opened.module, source.module, proof.shrunk, proof.masks, forward):
        yield Check(name=name, ok=ok, detail=detail)
    if known.unit_gains:
        yield _unit_gains(known, proof.masks, stored=True)
    if known.tuned:
        yield tuned_check(known, proof.tuned)


def _unit_gains(known: Provenance, masks: Masks, *, stored: bool) -> Check:
    """Exactly the kept units have a gain; where no mask is stored, the pattern is the proof."""
    gains, counted = count_gains(known.unit_gains), known.counts.gains
    wrong = [name for name in known.unit_gains if stored and not _fits(known, masks, name)]
    units = known.counts.units
    ok = not wrong and gains == counted and units is not None and counted == units.kept
    detail = f"{gains:,} kept units have a real gain each, which was trained"
    return Check(
        name="gains", ok=ok,
        detail=detail if ok else f"{detail}; {counted:,} are counted; not the kept of {wrong[:1]}",
    )  # fmt: skip


def _fits(known: Provenance, masks: Masks, name: str) -> bool:
    return name in masks and known.unit_gains[name].fit(masks[name])


def tuned_check(
    known: Provenance, here: Mapping[str, Tensor], absent: Collection[str] = ()
) -> Check:
    """The tuned parameters by name: as many numbers as are counted, with the recorded hashes."""
    names = [name for name in known.tuned if name not in absent]
    wrong = [n for n in names if n not in here or _digest(n, here[n]) != known.tuned[n]]
    count = sum(here[name].numel() for name in names if name in here)
    counted = known.counts.tuned if len(names) == len(known.tuned) else count
    more = f" and {len(known.tuned) - 3} more" if len(known.tuned) > 3 else ""
    return Check(
        name="tuned",
        ok=not wrong and count == counted,
        detail=f"trained beside the mask, not the origin's: {counted:,} numbers in "
        f"{len(known.tuned)} parameters ({', '.join(sorted(known.tuned)[:3])}{more}), "
        f"{known.counts.tuned / known.counts.parameters:.2%} of all; their values are "
        + (f"not those recorded, first {wrong[:1]}" if wrong else "those recorded"),
    )


def _digest(name: str, tensor: Tensor) -> str:
    return sha256_tensors({name: tensor.detach()})


def _stored_masks(opened: Opened) -> Masks:
    """Masks of a dense export, which stores none: everything but the +0.0 of a removed weight."""
    here = site_weights(opened.module, opened.shapes)
    return Masks({name: bits(weight) != 0 for name, weight in here.items()})


def _unseen(
    opened: Opened, known: Provenance, masks: Masks, weights: Mapping[str, Tensor]
) -> dict[str, int]:
    """How many kept weights of a dense export look removed because they are 0 at the origin too.

    At most as many per site as the origin has zeros there; none in a format that stores masks.
    """
    unseen = dict.fromkeys(masks, 0)
    for name, mask in masks.items() if opened.masks is None else ():
        whole = torch.ones_like(mask)
        origin = masked_weight(weights[name], whole, known.factors.get(name, 1.0))
        missing = _recorded(opened, name) - int(mask.count_nonzero())
        zeros = origin == 0 if name in known.flips else bits(origin) == 0
        unseen[name] = max(0, min(missing, int(zeros.sum())))
    return unseen


def _recorded(opened: Opened, name: str) -> int:
    kept = opened.entries[name].kept
    if kept is None:
        raise ArtifactError(f"{opened.path} is damaged: it does not count what {name} keeps")
    return kept


def _count(opened: Opened, known: Provenance, masks: Masks, unseen: Mapping[str, int]) -> Check:
    """The exact count, in total and, where it is recorded, at every site."""
    counts, density = known.counts, known.density
    # Larger units are counted by the check of the pattern: the weights are those recorded.
    wanted = counts.kept if counts_units(known) else max(1, round(density * counts.gated))
    kept = {name: count_kept(mask) + unseen[name] for name, mask in masks.items()}
    total, zeros = sum(kept.values()), sum(unseen.values())
    # A shrunk artifact counts what is left of a site, but the masks cover all of it.
    counted = bool(opened.entries) and opened.proof is None
    odd = [name for name in kept if counted and _recorded(opened, name) != kept[name]]
    gained = _odd_gains(known, masks, kept)
    return Check(
        name="count",
        ok=total == wanted == counts.kept and masks.total == counts.gated and not odd + gained,
        detail=f"{total:,} of {masks.total:,} gated weights are kept, "
        f"the budget of {density:g} asks for {wanted:,}"
        + (f"; {zeros:,} of them are 0 at the origin" if zeros else "")
        + (f"; {odd[0]} does not have its recorded count" if odd else "")
        + (f"; the gain of {gained[0]} is not 1 / sqrt of its density" if gained else ""),
    )


def _odd_gains(known: Provenance, masks: Masks, kept: Mapping[str, int]) -> list[str]:
    """The sites with a gain that is not 1 / sqrt(density) in fp32, which every search gives."""
    return [
        name
        for name, gain in known.gains.items()
        if kept.get(name, 0) == 0
        or not isclose(gain, (masks[name].numel() / kept[name]) ** 0.5, rel_tol=_FP32)
    ]


def _weights(
    opened: Opened,
    known: Provenance,
    masks: Masks,
    weights: Mapping[str, Tensor],
    unseen: Mapping[str, int],
) -> Check:
    """Every kept weight has the bits of gain * origin, rounded as stored; every other one is 0.

    Where flips are recorded, that many kept weights have the bits of its negative.
    """
    gains, here = known.factors, site_weights(opened.module, shapes_of(masks))
    rounded = {n: e.values for n, e in opened.entries.items() if e.values is not None}
    wrong = sorted(known.flips.keys() - masks.keys())
    for name, mask in masks.items():
        expected, hidden = masked_weight(weights[name], mask, gains.get(name, 1.0)), 0
        if name in rounded:
            expected = expected.to(rounded[name]).to(expected.dtype)
        if name in known.flips:
            flip = masks.flips.get(name)
            if flip is None:  # an artifact with values stores none: the signs show what is flipped
                flip = here[name].signbit() != expected.signbit()
            hidden = known.flips[name] - int(flip.count_nonzero())
            expected = torch.where(flip, -expected, expected)
        # a flipped -0 cannot be told from a removed weight
        if not 0 <= hidden <= unseen[name] or not same_bits(here[name], expected):
            wrong.append(name)
    times = "the origin's times the recorded gain" if gains else "the origin's"
    dtypes = sorted({dtype_name(dtype) for dtype in rounded.values()})
    times += "".join(f" rounded to {dtype}" for dtype in dtypes)
    signs = f" ({sum(known.flips.values()):,} with their sign flipped)" if known.flips else ""
    good = f"every kept weight is bit-identical to {times}{signs}, every other one is 0"
    bad = f"{len(wrong)} of {len(masks)} sites differ from the origin, first {wrong[:1]}"
    return Check(name="weights", ok=not wrong, detail=bad if wrong else good)


def _others(opened: Opened, source: Checkpoint, masks: Collection[str]) -> Check:
    """Parameters that were not gated have the origin's bits."""
    here: dict[str, Tensor] = dict(opened.module.named_parameters())
    there: dict[str, Tensor] = dict(source.module.named_parameters())
    if source.init is not None and opened.ticket is None:
        stored = set(source.stored)  # only the ticket has these
        there = {name: value for name, value in there.items() if name not in stored}
    others = [name for name in there if name not in masks and not _below(name, masks)]
    wrong = [name for name in others if name not in here or not same_bits(here[name], there[name])]
    detail = f"{len(others) - len(wrong)} of {len(others)} ungated parameters are the origin's bits"
    return Check(
        name="ungated", ok=not wrong, detail=detail + "".join(f"; not {n}" for n in wrong[:1])
    )


def _below(name: str, masks: Collection[str]) -> bool:
    """Whether only the parametrization of a site reads a parameter (weight norm's parts)."""
    module, marker, rest = name.partition("parametrizations.")
    return bool(marker) and module + rest.partition(".")[0] in masks
