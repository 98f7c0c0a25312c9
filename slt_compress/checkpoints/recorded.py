"""The origin of a ticket or artifact, as its folder records it, opened again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from slt_compress.anatomy.copies import private_copy
from slt_compress.checkpoints import Checkpoint, fetch_all, origin_files, reopen
from slt_compress.errors import SltError, SourceError


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
    return private_copy(model).cpu().eval()
