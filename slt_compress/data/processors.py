"""The parts of a checkpoint beside its model: processors, tokenizers, feature extractors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import DataError

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def has_processor(folder: Path) -> bool:
    """Whether a folder has the settings of an image processor or feature extractor."""
    return any((folder / name).is_file() for name in _PROCESSORS)


@contextmanager
def opening(part: str, folder: Path, *, absent: bool = False) -> Iterator[None]:
    """Open a part of the checkpoint in `folder` inside this block, quietly.

    With `absent` nothing in the folder is of this part, and an error only ends the block.

    Raises:
        DataError: any error; a damaged file can raise anything from KeyError to OSError.
    """
    try:
        with quiet():
            yield
    except Exception as error:
        if absent:
            return
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"the {part} in {folder} cannot be used: {said}") from error
