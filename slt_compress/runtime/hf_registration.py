"""Register with transformers, so that it can open artifacts: the one side effect of our import.

Importing this module imports neither torch nor transformers. If transformers' table of quantizers
was imported already, ours is added to it; otherwise a finder waits until the table is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

TABLE = "transformers.quantizers.auto"
_QUANTIZER = "slt_compress.runtime.hf_quantizer"


def register() -> None:
    """Put the quantizer into transformers' table, now or as soon as the table is imported."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    table = sys.modules.get(TABLE)
    if table is not None and hasattr(table, "register_quantizer"):  # otherwise half imported
        _add(table)
    else:
        sys.meta_path.insert(0, _Finder())


def _add(table: ModuleType) -> None:
    quantizer: Any = import_module(_QUANTIZER)
    if quantizer.METHOD not in table.AUTO_QUANTIZER_MAPPING:
        table.register_quantization_config(quantizer.METHOD)(quantizer.SltConfig)
        table.register_quantizer(quantizer.METHOD)(quantizer.SltQuantizer)


class _Finder(MetaPathFinder):
    """Finds one module, once, as Python would, and gives it a loader that registers afterwards."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TABLE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """A loader that does what another loader does, and then registers."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _add(module)
