"""The command `doctor`: what a report of a problem should say about the machine."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slt_compress import __version__
from slt_compress.cli.json_output import print_json
from slt_compress.cli.options import Json
from slt_compress.cli.plain_lines import say
from slt_compress.cli.subjects import line_of
from slt_compress.storage.quantities import bytes_in_words

LIBRARIES = ("torch", "transformers", "timm", "accelerate", "datasets", "huggingface-hub",
             "safetensors", "numpy")  # fmt: skip
# What each extra needs, and what it is for.
EXTRAS = {
    "fast": (("llvmlite",), 'load(…, runtime="auto") on CPUs'),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "export --format onnx"),
    "audio": (("soundfile", "soxr"), "data sets of sound"),
}
_VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE",
              "TRANSFORMERS_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
              "ACCELERATE_USE_CPU")  # fmt: skip


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, threads, the hub's cache and settings, disk space and extras."""
    found = examined()
    if as_json:
        print_json(found, "doctor")
        return
    for subject, text in _lines(found):
        say(line_of(subject, text))


def examined() -> dict[str, Any]:
    """What is on this machine; nothing is asked of a network."""
    import torch
    from huggingface_hub import constants

    here, cache = Path.cwd(), Path(constants.HF_HUB_CACHE)
    return {
        "slt_compress": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "devices": _devices(torch),
        "threads": {"torch": torch.get_num_threads(), "processors": os.cpu_count()},
        "cache": {"path": str(cache), "exists": cache.is_dir(), "free_bytes": _free(cache)},
        "hub": {"endpoint": constants.ENDPOINT, "offline": bool(constants.HF_HUB_OFFLINE)},
        "disk": {"path": str(here), "free_bytes": _free(here),
                 "writable": os.access(here, os.W_OK)},
        "extras": {
            name: {"missing": [part for part in parts if _version(part) is None], "for": purpose}
            for name, (parts, purpose) in EXTRAS.items()
        },
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }  # fmt: skip


def _devices(torch: Any) -> list[str]:
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [
            f"cuda:{index} ({torch.cuda.get_device_name(index)})"
            for index in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _free(path: Path) -> int:
    """Free bytes on the disk of a path, or of the nearest folder above it that exists."""
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(place).free


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    libraries = ", ".join(f"{name} {which or 'missing'}" for name, which in
                          found["libraries"].items())  # fmt: skip
    cache, disk, hub = found["cache"], found["disk"], found["hub"]
    lines = [
        ("version", f"slt-compress {found['slt_compress']}, Python {found['python']}, "
                    f"{found['system']}"),
        ("libraries", libraries),
        ("devices", ", ".join(found["devices"])),
        ("threads", f"{found['threads']['torch']} of torch on {found['threads']['processors']} "
                    "processors"),
        ("hub", f"{hub['endpoint']}{', offline' if hub['offline'] else ''}"),
        ("cache", f"{cache['path']}{'' if cache['exists'] else ' (not there yet)'}, "
                  f"{bytes_in_words(cache['free_bytes'])} free"),
        ("disk", f"{disk['path']}{'' if disk['writable'] else ' (NOT writable)'}, "
                 f"{bytes_in_words(disk['free_bytes'])} free"),
    ]  # fmt: skip
    for name, extra in found["extras"].items():
        missing = extra["missing"]
        state = f"missing: pip install 'slt-compress[{name}]'" if missing else "installed"
        lines.append(("extra", f"{name} ({extra['for']}): {state}"))
    lines += [("variable", f"{name}={value}") for name, value in found["variables"].items()]
    return lines
