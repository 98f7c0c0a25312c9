"""Versions and machine, which every result depends on, for the JSON of every run."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

import slt_compress

LIBRARIES = ("torch", "transformers", "timm", "safetensors", "accelerate", "datasets", "numpy")


def surroundings() -> dict[str, Any]:
    """`versions` and `machine`, as the files in `benchmarks/results` store them."""
    return {
        "versions": {
            "slt-compress": slt_compress.__version__,
            **{name: version(name) for name in LIBRARIES},
        },
        "machine": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
    }
