"""Open the origin of a ticket or artifact again, as its folder records it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from slt_compress.anatomy.copies import copy_of
from slt_compress.checkpoints import Checkpoint, fetch_all, origin_files, reopen
from slt_compress.checkpoints.downloaded import local_record
from slt_compress.errors import OwnModuleError, SltError, SourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedOrigin:
    """Where the frozen weights come from.

    Attributes:
        path: the folder with the record.
        record: as made by `origin_record`.
        stored: tensors of a random init that its seed does not determine; None if the folder does
            not hold them, in which case the library's own values are used.
        error: raised if the folder lacks one of them.
    """

    path: Path
    record: Mapping[str, object]
    stored: Mapping[str, Tensor] | None
    error: type[SltError]

    def open(
        self, *, origin: str | Path | None = None, model: nn.Module | None = None
    ) -> Checkpoint:
        """The checkpoint with its weights untouched; `origin` and `model` as in `load`.

        Raises:
            SourceError: it cannot be opened, or is a user's own module and `model` is missing.
            SltError: the folder lacks a stored tensor.
        """
        if self.record.get("kind") == "module":
            return Checkpoint.of_module(_own_module(self.path, model))
        checkpoint = reopen(local_record(self.path, self.record, origin), override=origin)
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
        """The safetensors files of its weights.

        Raises:
            SourceError: a random init or a user's own module, or the files cannot be reached.
        """
        if self.record.get("kind") not in ("hub", "folder", "file"):
            raise SourceError(
                f"{self.path} masks weights that are not in any file; open it with "
                f"slt_compress.load({str(self.path)!r})"
            )
        return origin_files(local_record(self.path, self.record, None))


def local_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder of a ticket or artifact; a repository on the hub (`ORG/NAME`) is downloaded.

    Raises:
        SltError: there is no such folder, and the text is not a repository id.
        SourceError: the hub does not have it or cannot be reached.
    """
    folder = Path(path)
    if folder.exists():
        if revision is not None:
            raise SltError(f"{path} is a folder; a revision belongs to a hub id")
        return folder
    if not isinstance(path, str) or not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", path):
        raise SltError(f"there is no {path}")
    return fetch_all(path, revision)


def _own_module(path: Path, model: nn.Module | None) -> nn.Module:
    if model is None:
        raise OwnModuleError(path)
    return copy_of(model).cpu().eval()
