"""Open a ticket or an artifact as a ready model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.copies import flatten_, private_copy
from slt_compress.anatomy.states import (
    kept_buffers,
    set_buffers,
    shapes_of,
    site_parameters,
    site_weights,
)
from slt_compress.artifacts import (
    MASK_FORMAT,
    MaskArtifact,
    Proof,
    describe_artifact,
    is_artifact,
    read_artifact,
    read_mask_artifact,
    read_proof,
)
from slt_compress.artifacts.origin import origin_of_artifact, recorded_init
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.recorded import RecordedOrigin
from slt_compress.errors import ArtifactError, SltError
from slt_compress.masks import Masks, masked_weight
from slt_compress.storage.files import sha256_tensors
from slt_compress.tickets import Ticket, read_ticket
from slt_compress.tickets.origin import origin_of_ticket
from slt_compress.tickets.provenance import Provenance, check_provenance, provenance_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A ticket or artifact as a model, with what is known of it.

    Attributes:
        path: the folder.
        checkpoint: the model and what data preparation needs.
        masks: which weights survive; None for a dense export, which stores no mask.
        provenance: where the weights come from, as the folder says; not checked for an artifact,
            which can be used without it.
        entries: stored tensors of an artifact; empty for a ticket.
        ticket: None for an artifact.
        proof: of a shrunk artifact, what it is proved from; `masks` are of the model before.
        recorded: the whole origin, for a ticket and for an artifact that is a mask alone.
        flattened: sites of a ticket whose weight the origin computes by a parametrization (weight
            norm); in this module it is a plain parameter.
    """

    path: Path
    checkpoint: Checkpoint
    masks: Masks | None
    provenance: object
    entries: Mapping[str, Mapping[str, Any]]
    ticket: Ticket | None
    proof: Proof | None = None
    recorded: RecordedOrigin | None = None
    flattened: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every site."""
        if self.masks is not None:
            return shapes_of(self.masks)
        sites = {name: entry for name, entry in self.entries.items() if "kept" in entry}
        return {name: tuple(entry["shape"]) for name, entry in sites.items()}

    @property
    def module(self) -> nn.Module:
        """The masked model, on the CPU in eval mode."""
        return self.checkpoint.module


def open_path(
    path: str | Path, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Opened:
    """Open a ticket or an artifact; `origin` and `model` as in `load`.

    Raises:
        SltError: the folder is neither, or damaged, or its origin cannot be had.
    """
    folder = Path(path)
    if not folder.exists():
        raise SltError(f"there is no {folder}")
    if not is_artifact(folder):
        return mask_of(read_ticket(folder)).open(origin=origin, model=model)
    if describe_artifact(folder).format == MASK_FORMAT:
        return mask_of(read_mask_artifact(folder)).open(origin=origin, model=model)
    copy = None if model is None else private_copy(model).cpu()
    loaded = read_artifact(folder, model=copy)
    provenance, proof = loaded.manifest.get("provenance"), read_proof(loaded)
    # pictures are made for the size that a random init was built for, not its processor's
    checkpoint = replace(loaded.checkpoint, init=recorded_init(provenance))
    return Opened(
        path=folder, checkpoint=checkpoint, masks=loaded.masks if proof is None else proof.masks,
        provenance=provenance, entries=loaded.artifact.entries, ticket=None, proof=proof,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOfOrigin:
    """A mask and the origin it is for, out of a ticket or of an artifact of the format `mask`.

    `masks` are unpacked only after the origin was seen to have weights of these `shapes`.
    """

    recorded: RecordedOrigin
    provenance: Provenance
    shapes: Mapping[str, tuple[int, ...]]
    masks: Callable[[], Masks]
    buffers: Mapping[str, Tensor]
    entries: Mapping[str, Mapping[str, Any]]
    ticket: Ticket | None

    def open(self, *, origin: str | Path | None, model: nn.Module | None) -> Opened:
        """The origin under the mask."""
        checkpoint = self.recorded.open(origin=origin, model=model)
        masks, flattened = self.put_on_(checkpoint.module, str(origin) if origin else None)
        return Opened(
            path=self.recorded.path,
            checkpoint=checkpoint,
            masks=masks,
            provenance=self.provenance.to_dict(),
            entries=self.entries,
            ticket=self.ticket,
            recorded=self.recorded,
            flattened=flattened,
        )

    def put_on_(self, module: nn.Module, named: str | None = None) -> tuple[Masks, tuple[str, ...]]:
        """Mask a module in place, its frozen weights proven to be the ones of the search."""
        recorded = self.recorded
        weights = site_weights(module, self.shapes)
        if sha256_tensors(weights) != self.provenance.weights_hash:
            raise recorded.error(
                f"the weights of {named or recorded.record.get('source')} are not those that "
                f"{recorded.path} was searched on{_versions_note(recorded.record)}"
            )
        masks = self.masks()
        flattened = apply_masks_(module, masks, self.provenance.gains)
        set_buffers(module, self.buffers)
        return masks, flattened


def mask_of(found: Ticket | MaskArtifact) -> MaskOfOrigin:
    """What a ticket or an artifact of the format `mask` puts on its origin.

    Raises:
        SltError: it does not say what its origin is.
    """
    if isinstance(found, Ticket):
        return MaskOfOrigin(
            recorded=origin_of_ticket(found),
            provenance=provenance_of(found),
            shapes=shapes_of(found.masks),
            masks=lambda: found.masks,
            buffers=found.buffers,
            entries={},
            ticket=found,
        )
    given = found.manifest.get("provenance")
    return MaskOfOrigin(
        recorded=origin_of_artifact(found.path, given, found),
        provenance=check_provenance(given, found.path, ArtifactError),
        shapes=found.shapes,
        masks=found.masks,
        buffers=found.buffers,
        entries=found.entries,
        ticket=None,
    )


def origin_of(
    opened: Opened, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Checkpoint:
    """The origin of an opened folder, its weights untouched; a ticket folder may stand in for it.

    Raises:
        SltError: it is not recorded, or cannot be had.
    """
    recorded = opened.recorded
    if recorded is None and origin is not None and (Path(origin) / "ticket.json").is_file():
        return origin_of_ticket(read_ticket(origin)).open(model=model)
    if recorded is None:
        recorded = origin_of_artifact(opened.path, opened.provenance)
    return recorded.open(origin=origin, model=model)


@contextmanager
def as_origin(opened: Opened, source: Checkpoint) -> Iterator[None]:
    """The opened module with the weights and buffers of its origin, as long as the block lasts."""
    if opened.proof is not None:
        raise ArtifactError(
            f"{opened.path} is shrunk, so it cannot be compared with its origin on data that has "
            "other labels: evaluate the ticket"
        )
    dense = site_weights(source.module, opened.shapes)
    here = site_parameters(opened.module, opened.shapes)
    masked = {name: weight.data for name, weight in here.items()}
    try:
        with kept_buffers(opened.module):
            set_buffers(opened.module, dict(source.module.named_buffers()))
            for name, weight in here.items():
                weight.data = dense[name]
            yield
    finally:
        for name, weight in here.items():
            weight.data = masked[name]


def apply_masks_(module: nn.Module, masks: Masks, gains: Mapping[str, float]) -> tuple[str, ...]:
    """Turn the weights of the sites into ±fl(gain * weight) where kept and 0 elsewhere, in place.

    A weight under a parametrization becomes a plain parameter; gives the names of those.
    """
    flattened: list[str] = []
    with torch.no_grad():
        for name, mask in masks.items():
            path, _, param = name.rpartition(".")
            owner = module.get_submodule(path)
            if flatten_(owner, param):
                flattened.append(name)
            weight = getattr(owner, param)
            gain, flip = gains.get(name, 1.0), masks.flips.get(name)
            # not copied into: a weight may be expanded, or lie in the memory of another one
            weight.data = masked_weight(weight, mask, gain, flip)
    return tuple(flattened)


def _versions_note(record: Mapping[str, Any]) -> str:
    from_versions = record.get("versions")
    if not isinstance(from_versions, Mapping):
        return ""
    listed = ", ".join(f"{name} {value}" for name, value in sorted(from_versions.items()) if value)
    return f" (with {listed}); --origin PATH says where those are" if listed else ""
