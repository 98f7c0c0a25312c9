"""The origin of a ticket or artifact, as its folder records it, opened again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from slt_compress.artifact import MaskArtifact
from slt_compress.checkpoints import Checkpoint, Init, fetch_all, origin_files, reopen
from slt_compress.errors import ArtifactError, SltError, SourceError, TicketError
from slt_compress.ticket import ORIGIN, Ticket, read_origin_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedOrigin:
    """Where frozen weights come from.

    Attributes:
        path: the folder that says so.
        record: as `origin_record` made it.
        stored: tensors of a random init that its seed does not give; None where the folder does
            not hold them, and the library's own values stand in.
        error: what a folder that lacks one of them raises.
    """

    path: Path
    record: Mapping[str, Any]
    stored: Mapping[str, Tensor] | None
    error: type[SltError]

    def open(
        self, *, origin: str | Path | None = None, model: nn.Module | None = None
    ) -> Checkpoint:
        """The checkpoint, its weights untouched; `origin` and `model` as in `load`.

        Raises:
            SourceError: it cannot be had, or is a module of the user's own and `model` is missing.
            SltError: the folder lacks a stored tensor.
        """
        if self.record.get("kind") == "module":
            return module_checkpoint(_own_module(self.path, model))
        checkpoint = reopen(self.record, override=origin)
        if self.stored is None:
            return checkpoint
        state = checkpoint.module.state_dict()
        for name in checkpoint.stored:
            tensor = self.stored.get(name)
            if tensor is None or name not in state or tensor.shape != state[name].shape:
                raise self.error(f"{self.path} does not hold the stored tensor {name}")
            state[name].copy_(tensor)
        return checkpoint

    def files(self) -> tuple[Path, ...]:
        """The safetensors files of its weights, where it has any.

        Raises:
            SourceError: a random init or a module of the user's own, or they cannot be had.
        """
        if self.record.get("kind") not in ("hub", "folder", "file"):
            raise SourceError(
                f"{self.path} is a mask of weights that are in no file; open it with "
                f"slt_compress.load({str(self.path)!r})"
            )
        return origin_files(self.record)


def origin_of_ticket(ticket: Ticket) -> RecordedOrigin:
    """What a ticket was searched on."""
    return RecordedOrigin(
        path=ticket.path, record=ticket.origin, stored=stored_of(ticket), error=TicketError
    )


def origin_of_artifact(
    path: Path, provenance: object, mask: MaskArtifact | None = None
) -> RecordedOrigin:
    """What the ticket behind an artifact was searched on; only one of a `mask` is all there.

    Raises:
        ArtifactError: the artifact does not say.
    """
    record = provenance.get("origin") if isinstance(provenance, Mapping) else None
    if not isinstance(record, Mapping):
        raise ArtifactError(f"{path} does not record its origin")
    stored = None if mask is None else mask.stored
    return RecordedOrigin(path=path, record=record, stored=stored, error=ArtifactError)


def local_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder of a ticket or artifact; one on the hub (`ORG/NAME`) is fetched.

    Raises:
        SltError: there is no such folder, and the text is no id of a repository.
        SourceError: the hub does not have it, or cannot be reached.
    """
    folder = Path(path)
    if folder.exists():
        if revision is not None:
            raise SltError(f"{path} is a folder; a revision belongs to a hub id")
        return folder
    if not isinstance(path, str) or not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", path):
        raise SltError(f"there is no {path}")
    return fetch_all(path, revision)


def stored_of(ticket: Ticket) -> dict[str, Tensor]:
    """All tensors in a ticket that the seed of its random init does not give.

    Raises:
        TicketError: they are damaged.
    """
    whole = ORIGIN in ticket.summary["files"]  # read_ticket checked that it is an object
    return {**ticket.stored, **(read_origin_tensors(ticket.path) if whole else {})}


def recorded_init(provenance: object) -> Init | None:
    """The random init behind an artifact, where it says of one."""
    origin = provenance.get("origin") if isinstance(provenance, Mapping) else None
    init = origin.get("init") if isinstance(origin, Mapping) else None
    scheme, seed = (init.get("scheme"), init.get("seed")) if isinstance(init, dict) else (0, 0)
    return Init(scheme=scheme, seed=seed) if isinstance(scheme, str) and type(seed) is int else None


def module_checkpoint(module: nn.Module) -> Checkpoint:
    """A module of the user's own, as a checkpoint."""
    return Checkpoint(
        source=type(module).__name__, kind="module", revision=None, family="module",
        task="features", module=module, config={}, folder=None, classes=None, num_classes=None,
        trained_head=False, init=None, weights=None, license=None, file_keys={}, stored=(),
    )  # fmt: skip


def _own_module(path: Path, model: nn.Module | None) -> nn.Module:
    if model is None:
        raise SourceError(
            f"{path} was searched on a module of your own: hand it over with "
            "slt_compress.load(PATH, model=module)"
        )
    return deepcopy(model).cpu().eval()
