"""Spools: nested values whose tensors wait in files until they are wanted."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slt_compress.storage.files import aligned


@dataclass(frozen=True, slots=True)
class _Stored:
    """Stands for the tensor of this key."""

    key: str


class Spool(Sequence[Any]):
    """A sequence of nested values, each with its tensors in a file of its own.

    Tensors in lists, tuples and dictionaries wait in the file; anything else stays in memory. Every
    look-up reads the tensors anew, on the CPU. The files are gone when the spool is.
    """

    def __init__(self, folder: Path, values: Iterable[Any]) -> None:
        """Write the values, one at a time, into a new folder in `folder`."""
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._shapes: list[Any] = []
        for value in values:
            tensors: dict[str, Tensor] = {}
            self._shapes.append(_taken_out(value, tensors))
            if tensors:
                save_file(tensors, self._file(len(self._shapes) - 1))

    def _file(self, index: int) -> Path:
        return self._folder / f"{index}.safetensors"

    def __len__(self) -> int:
        return len(self._shapes)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        shape = self._shapes[index]
        file = self._file(range(len(self))[index])
        if not file.exists():
            return shape
        with safe_open(str(file), framework="pt") as opened:
            tensors = {key: aligned(opened.get_tensor(key)) for key in opened.keys()}  # noqa: SIM118
        return _put_in(shape, tensors)


def _taken_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value with its tensors moved to `tensors`."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        # a copy: a view of a larger tensor, or one that several values share, is no file's own
        tensors[key] = value.detach().cpu().clone().contiguous()
        return _Stored(key)
    if type(value) in (tuple, list):
        return type(value)(_taken_out(entry, tensors) for entry in value)
    if type(value) is dict:
        return {name: _taken_out(entry, tensors) for name, entry in value.items()}
    return value


def _put_in(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, _Stored):
        return tensors[value.key]
    if type(value) in (tuple, list):
        return type(value)(_put_in(entry, tensors) for entry in value)
    if type(value) is dict:
        return {name: _put_in(entry, tensors) for name, entry in value.items()}
    return value
