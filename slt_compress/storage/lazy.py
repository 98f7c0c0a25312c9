"""Tensors that are read or computed one at a time, whenever they are looked up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from slt_compress.errors import SltError
from slt_compress.storage.files import UNREADABLE, unreadable
from slt_compress.storage.regular import expect_regular

T = TypeVar("T")
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of some safetensors files by key, each read when it is looked up.

    A file is open only while a tensor is read from it, so that nothing stays mapped. Its header is
    compared with its size every time.
    """

    def __init__(self, files: Iterable[Path], error: type[SltError]) -> None:
        """List the keys.

        Raises:
            error: a file is missing or damaged, or two files hold the same key.
        """
        self._error = error
        self._places: dict[str, Path] = {}
        for path in files:
            with self._opened(path) as file:
                for key in file.keys():  # noqa: SIM118 - the file is not a mapping
                    if key in self._places:
                        raise error(f"{path} repeats the tensor {key} of another shard")
                    self._places[key] = path

    def __getitem__(self, key: str) -> Tensor:
        with self._opened(self._places[key]) as file:
            # a copy: a view would keep the whole file mapped for as long as it is held
            tensor: Tensor = file.get_tensor(key).clone()
            return tensor

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shells(self) -> dict[str, Tensor] | None:
        """Every tensor on the meta device (shape and dtype); None if torch lacks a dtype."""
        shells: dict[str, Tensor] = {}
        for path in dict.fromkeys(self._places.values()):
            with self._opened(path) as file:
                for key in file.keys():  # noqa: SIM118
                    part = file.get_slice(key)
                    dtype = _DTYPES.get(str(part.get_dtype()))
                    if dtype is None:
                        return None
                    shells[key] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
        return shells

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        try:
            expect_regular(path)
            with safe_open(str(path), framework="pt") as file:
                yield file
        except UNREADABLE as cause:
            raise unreadable(path, cause, self._error) from cause


class LazyMapping(Mapping[str, T]):
    """Values by name, each computed again whenever it is looked up; none is held here."""

    def __init__(self, names: Iterable[str], make: Callable[[str], T]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
