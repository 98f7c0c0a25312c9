"""Open a ticket or an artifact as a ready model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from slt_compress.anatomy.copies import copy_of
from slt_compress.anatomy.states import (
    kept_buffers,
    set_buffers,
    set_parameters_,
    shapes_of,
    site_parameters,
    site_weights,
)
from slt_compress.artifacts import (
    MASK_FORMAT,
    Artifact,
    Entry,
    MaskArtifact,
    Proof,
    describe_artifact,
    is_artifact,
    read_artifact,
    read_mask_artifact,
    read_proof,
)
from slt_compress.artifacts.origin import init_of_artifact, origin_of_artifact
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.recorded import RecordedOrigin
from slt_compress.errors import ArtifactError, SltError
from slt_compress.masks import Masks
from slt_compress.runtime.masking import apply_masks_
from slt_compress.runtime.origin_sizes import expect_sizes
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
        ticket: None for an artifact.
        artifact: None for a ticket.
        proof: of a shrunk artifact, what it is proved from; `masks` are of the model before.
        recorded: the whole origin, for a ticket and for an artifact that is a mask alone.
        source: the origin with its weights untouched, where it was opened and asked to be kept.
        flattened: sites of a ticket whose weight the origin computes by a parametrization (weight
            norm); in this module it is a plain parameter.
    """

    path: Path
    checkpoint: Checkpoint
    masks: Masks | None
    ticket: Ticket | None = None
    artifact: Artifact | None = None
    proof: Proof | None = None
    recorded: RecordedOrigin | None = None
    source: Checkpoint | None = None
    flattened: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every site; of a shrunk model, before the cut."""
        return self.shapes_now if self.masks is None else shapes_of(self.masks)

    @property
    def shapes_now(self) -> dict[str, tuple[int, ...]]:
        """Shape of every site in this module."""
        if self.artifact is None or self.artifact.format == MASK_FORMAT:
            return shapes_of(self.masks or Masks({}))
        return {name: e.shape for name, e in self.entries.items() if e.kept is not None}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What an artifact stores, by name; empty for a ticket."""
        return {} if self.artifact is None else self.artifact.entries

    def provenance(self) -> Provenance:
        """Where the weights come from; not checked before, as an artifact can be used without it.

        Raises:
            SltError: the folder does not say, or what it says is damaged.
        """
        if self.ticket is not None:
            return provenance_of(self.ticket)
        given = None if self.artifact is None else self.artifact.provenance
        return check_provenance(given, self.path, ArtifactError)

    @property
    def module(self) -> nn.Module:
        """The masked model, on the CPU in eval mode."""
        return self.checkpoint.module


def describe_folder(path: str | Path) -> Ticket | Artifact:
    """Read a ticket, or what an artifact says it is: its manifest is opened here and nowhere else.

    Raises:
        SltError: the folder is neither, or damaged.
    """
    folder = Path(path)
    if not folder.exists():
        raise SltError(f"there is no {folder}")
    return describe_artifact(folder) if is_artifact(folder) else read_ticket(folder)


def open_path(
    path: Ticket | Artifact | str | Path,
    *,
    origin: str | Path | None = None,
    model: nn.Module | None = None,
    keep_origin: bool = False,
) -> Opened:
    """Open a ticket or an artifact; `origin` and `model` as in `load`.

    With `keep_origin` an origin that is opened for its weights is kept beside the masked copy, so
    that `origin_of` need not open it again.

    Raises:
        SltError: the folder is neither, or damaged, or its origin cannot be opened.
    """
    holder = describe_folder(path) if isinstance(path, str | Path) else path
    if isinstance(holder, Ticket):
        return mask_of(holder).open(origin=origin, model=model, keep_origin=keep_origin)
    if holder.format == MASK_FORMAT:
        mask = mask_of(read_mask_artifact(holder))
        return mask.open(origin=origin, model=model, keep_origin=keep_origin)
    copy = None if model is None else copy_of(model).cpu()
    loaded, proof = read_artifact(holder, model=copy), read_proof(holder)
    # Images are prepared for the size that a random init was built for, not for its processor's.
    checkpoint = replace(loaded.checkpoint, init=init_of_artifact(holder))
    masks = loaded.masks if proof is None else proof.masks
    return Opened(
        path=holder.path, checkpoint=checkpoint, masks=masks, artifact=holder, proof=proof
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOfOrigin:
    """A mask and the origin it is for, from a ticket or from an artifact of the format `mask`.

    `masks` unpacks them; it is called only after the origin was found to have these `shapes`.
    """

    recorded: RecordedOrigin
    provenance: Provenance
    shapes: Mapping[str, tuple[int, ...]]
    masks: Callable[[], Masks]
    buffers: Mapping[str, Tensor]
    tuned: Mapping[str, Tensor]
    ticket: Ticket | None = None
    artifact: Artifact | None = None

    def open(
        self, *, origin: str | Path | None, model: nn.Module | None, keep_origin: bool = False
    ) -> Opened:
        """The origin under the mask, and with `keep_origin` the untouched origin beside it."""
        expect_sizes(self.recorded, self.provenance.counts.parameters, self.shapes)
        checkpoint = self.recorded.open(origin=origin, model=model)
        source = checkpoint if keep_origin else None
        if keep_origin:
            checkpoint = replace(checkpoint, module=copy_of(checkpoint.module))
        masks, flattened = self.put_on_(checkpoint.module, str(origin) if origin else None)
        return Opened(
            path=self.recorded.path,
            checkpoint=checkpoint,
            masks=masks,
            ticket=self.ticket,
            artifact=self.artifact,
            recorded=self.recorded,
            source=source,
            flattened=flattened,
        )

    def put_on_(self, module: nn.Module, named: str | None = None) -> tuple[Masks, tuple[str, ...]]:
        """Mask a module in place, once its frozen weights are proven to be those of the search."""
        recorded = self.recorded
        weights = site_weights(module, self.shapes)
        if sha256_tensors(weights) != self.provenance.weights_hash:
            raise recorded.error(
                f"the weights of {named or recorded.record.get('source')} are not those that "
                f"{recorded.path} was searched on{_versions_note(recorded.record)}"
            )
        masks = self.masks()
        flattened = apply_masks_(module, masks, self.provenance.factors)
        set_buffers(module, self.buffers)
        set_parameters_(module, self.tuned)
        return masks, flattened


def mask_of(holder: Ticket | MaskArtifact) -> MaskOfOrigin:
    """What a ticket or an artifact of the format `mask` puts on its origin.

    Raises:
        SltError: it does not say what its origin is.
    """
    if isinstance(holder, Ticket):
        return MaskOfOrigin(
            recorded=origin_of_ticket(holder),
            provenance=provenance_of(holder),
            shapes=shapes_of(holder.masks),
            masks=lambda: holder.masks,
            buffers=holder.buffers,
            tuned=holder.tuned,
            ticket=holder,
        )
    artifact = holder.artifact
    return MaskOfOrigin(
        recorded=origin_of_artifact(artifact, holder),
        provenance=check_provenance(artifact.provenance, artifact.path, ArtifactError),
        shapes=holder.shapes,
        masks=holder.masks,
        buffers=holder.buffers,
        tuned=holder.tuned,
        artifact=artifact,
    )


def origin_of(
    opened: Opened, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Checkpoint:
    """The origin of an opened folder, its weights untouched; `origin` may be a ticket of it.

    Raises:
        SltError: it is not recorded, or cannot be opened.
    """
    if opened.source is not None:
        return opened.source
    recorded = opened.recorded
    if recorded is None and origin is not None and (Path(origin) / "ticket.json").is_file():
        return origin_of_ticket(read_ticket(origin)).open(model=model)
    if recorded is None and opened.artifact is not None:
        recorded = origin_of_artifact(opened.artifact)
    if recorded is None:
        raise SltError(f"{opened.path} does not record its origin")
    return recorded.open(origin=origin, model=model)


@contextmanager
def as_origin(opened: Opened, source: Checkpoint) -> Iterator[None]:
    """Give the opened module what its origin has, for the length of the block.

    That is its weights, its buffers and its own values of tuned parameters.
    """
    if opened.proof is not None:
        raise ArtifactError(
            f"{opened.path} is shrunk, so it cannot be compared with its origin on data with "
            "other labels: evaluate the ticket"
        )
    dense = site_weights(source.module, opened.shapes)
    here = site_parameters(opened.module, opened.shapes)
    tuned, own = (dict(m.named_parameters()) for m in (opened.module, source.module))
    for name in opened.provenance().tuned:
        here[name], dense[name] = tuned[name], own[name].detach()
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


def _versions_note(record: Mapping[str, object]) -> str:
    versions = record.get("versions")
    if not isinstance(versions, Mapping):
        return ""
    listed = ", ".join(f"{name} {value}" for name, value in sorted(versions.items()) if value)
    return f" (with {listed}); --origin PATH says where those are" if listed else ""
