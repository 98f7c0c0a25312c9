"""The plain checkpoint beside a ticket, where the imported one stores its weights in parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from slt_compress.checkpoints.companions import copy_companions
from slt_compress.errors import TicketError
from slt_compress.storage.files import atomic_folder, sha256_file, write_safetensors
from slt_compress.storage.locks import locked, unfinished_folder
from slt_compress.tickets.places import MANIFEST


@contextmanager
def unpacked_origin(
    target: Path,
    ticket: Path,
    source: Path,
    config: Mapping[str, object],
    tensors: Mapping[str, Tensor],
) -> Iterator[Path]:
    """The folder `target` with a plain checkpoint of the tensors, locked for the block.

    A folder that an import left there when it was killed before its ticket was written is used
    again, if it has the same bytes. One that is written here goes again if the block fails, unless
    `ticket` is there by then: an interrupt can come right after it was written.

    Raises:
        TicketError: something else is there, another process is importing to it, or it cannot be
            written.
    """

    def fill(folder: Path) -> None:
        write_safetensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        copy_companions(source, folder)

    try:
        written = not _left_there(target, fill)
        if written:
            with atomic_folder(target) as folder:
                fill(folder)
    except (OSError, SafetensorError) as cause:
        raise TicketError(f"cannot write the unpacked weights to {target}: {cause}") from cause
    with ExitStack() as held:
        try:
            held.enter_context(locked(target))
        except OSError as cause:
            raise TicketError(
                f"another process is importing to {target}: wait for it, or name another folder "
                "with -o"
            ) from cause
        try:
            yield target
        except BaseException:
            if written and not (ticket / MANIFEST).is_file():  # of use to nobody without its ticket
                shutil.rmtree(target, ignore_errors=True)
            raise


def _left_there(target: Path, fill: Callable[[Path], None]) -> bool:
    """Whether a folder has just the files that `fill` writes."""
    if not target.is_dir() or not any(target.iterdir()):
        return False
    with unfinished_folder(target) as part:
        fill(part)
        return _hashes(part) == _hashes(target)


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) if path.is_file() else "" for path in folder.iterdir()}
