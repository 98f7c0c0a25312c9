"""Choices of `auto` that were measured before, in the user's cache folder.

A file is believed only if it is of this model, processor, thread count and these versions, and has
the expected form; any other is as good as none. What it can do wrong is to make a model slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from slt_compress.errors import SltError
from slt_compress.runtime.opening import Opened
from slt_compress.storage.files import atomic_write, json_text, read_json
from slt_compress.storage.manifests import is_count, is_finite

# Of the file and of the kernels: what was measured of others says nothing about these.
_VERSION = 2
_LONGEST = 400  # characters of a sentence

Points = Mapping[str, Mapping[int, str | None]]


class _UnusableError(SltError):
    """A file that is not what was written; it is measured again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the measuring of a model gave.

    Attributes:
        layers: the kernel of each layer by token count; None is the layer's own computation.
        faster: whether the model as a whole is faster with them.
        warning: why it was not compared as a whole; None where it was.
        error: of a lower precision, see `KernelPlan`.
    """

    layers: Points
    faster: bool
    warning: str | None = None
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The form in the file."""
        layers = {
            name: {str(count): kernel for count, kernel in points.items()}
            for name, points in self.layers.items()
        }
        return {
            "layers": layers,
            "faster": self.faster,
            "warning": self.warning,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The place where the choices for one model on this machine are kept."""

    facts: Mapping[str, object]

    @property
    def path(self) -> Path:
        """The file; it need not exist."""
        digest = hashlib.sha256(json_text(self.facts).encode()).hexdigest()
        return cache_folder() / "choices" / f"{digest[:40]}.json"

    def recall(self) -> Measured | None:
        """What was measured before; None where that is unknown or cannot be used."""
        try:
            values = read_json(self.path, _UnusableError)
        except SltError:
            return None
        if values.get("facts") != dict(self.facts):
            return None
        return _parsed(values)

    def keep(self, measured: Measured) -> None:
        """Keep it for the next load; a folder that cannot be written to is no error."""
        text = json_text({"facts": self.facts, **measured.to_dict()}, indent=2) + "\n"
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as stream:
                stream.write(text.encode())


def memory_of(opened: Opened, precision: str) -> Memory:
    """The memory for an opened folder, by all that the timings depend on."""
    holder = opened.ticket or opened.artifact
    digest = None if holder is None else _hash_of(holder.manifest.values)
    return Memory(
        facts={
            "kind": "slt-choices",
            "version": _VERSION,
            "model": digest,
            "precision": precision,
            "processor": processor(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "versions": {name: _installed(name) for name in ("torch", "llvmlite", "slt-compress")},
        }
    )


def cache_folder() -> Path:
    """The folder of slt-compress in the user's cache; `SLT_COMPRESS_CACHE` names another."""
    given = os.environ.get("SLT_COMPRESS_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "slt-compress"


def _hash_of(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json_text(values).encode()).hexdigest()


def _parsed(values: Mapping[str, Any]) -> Measured | None:
    layers, faster, warning = (values.get(key) for key in ("layers", "faster", "warning"))
    if not isinstance(layers, Mapping) or not isinstance(faster, bool):
        return None
    if not (warning is None or (isinstance(warning, str) and len(warning) <= _LONGEST)):
        return None
    error = values.get("error")
    if not (error is None or (is_finite(error) and error >= 0)):
        return None
    parsed = {str(name): _points(points) for name, points in layers.items()}
    sound = {name: points for name, points in parsed.items() if points is not None}
    if len(sound) != len(parsed):
        return None
    return Measured(layers=sound, faster=faster, warning=warning, error=error)


def _points(points: object) -> dict[int, str | None] | None:
    if not isinstance(points, Mapping) or len(points) > 64:
        return None
    counts = [int(key) for key in points if key.isascii() and key.isdigit() and len(key) < 16]
    kernels = list(points.values())
    if len(counts) != len(points) or not all(is_count(count) for count in counts):
        return None
    if not all(kernel is None or isinstance(kernel, str) for kernel in kernels):
        return None
    return dict(zip(counts, kernels, strict=True))


@cache
def processor() -> str:
    """The name of the processor, as far as the system says it."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        named = [line for line in lines if line.startswith(("model", "CPU part", "Features"))]
        if named:
            return " ".join(" ".join(sorted(set(named))).split())[:_LONGEST]
    return f"{platform.machine()} {platform.processor()}"[:_LONGEST]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
