"""Memory of serving, measured in a process of its own: `python -m slt_compress.runtime.resting`.

The process loads the model and answers once, lets go of it, notes its memory, does the same again,
and prints as JSON what it holds then, what it held at most, and how long the second loading took.
"""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slt_compress.checkpoints.tasks import forward_of
from slt_compress.errors import SltError
from slt_compress.runtime.opening import open_path
from slt_compress.runtime.rivals import open_rival
from slt_compress.runtime.sparse import run_on
from slt_compress.storage.files import read_safetensors
from slt_compress.storage.freeing import release

_STATUS = Path("/proc/self/status")


def resting(row: str, path: Path, inputs: Path, *, threads: int, origin: str | None) -> Any:
    """Seconds of loading and bytes of serving of a row, in a process of its own.

    Args:
        row: the name of a rival's row; or a runtime, and a precision behind a space.
        path: the folder of the rival's ONNX model, or of the ticket or artifact.
        inputs: a safetensors file with a batch by argument name.
        threads: for torch and rivals.
        origin: as for `load`.

    Returns:
        `{"load_seconds", "resting_bytes", "peak_bytes"}`, beyond what the imports take; None where
        the system does not tell.
    """
    if not _STATUS.exists():
        return None
    command = [sys.executable, "-m", __spec__.name, row, str(path), str(inputs), str(threads)]
    command += [] if origin is None else [origin]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        reason = done.stderr.strip().splitlines()[-1:]
        raise SltError(f"{row} could not be measured in a process of its own: {reason}") from None


def _held() -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    return {key: int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM")}


def _opened(row: str, path: Path, origin: str | None) -> Callable[[Mapping[str, Tensor]], Any]:
    if row.startswith(("openvino", "onnxruntime")):
        return open_rival(row, path)[0]
    runtime, _, precision = row.partition(" ")
    opened = open_path(path, origin=origin)
    forward = forward_of(opened.checkpoint.family, opened.checkpoint.task)
    module = run_on(opened, runtime, precision=precision or None)
    return lambda inputs: forward(module, inputs)


def _serve(
    row: str, path: Path, origin: str | None, batch: Mapping[str, Tensor]
) -> tuple[Callable[[Mapping[str, Tensor]], Any], float]:
    """A model that answered once, and the seconds of loading it."""
    started = time.perf_counter()
    run = _opened(row, path, origin)
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        run(batch)
    return run, seconds


def _clean() -> None:
    gc.collect()
    release()


def main() -> None:
    """Measure one row and print it.

    The model is loaded twice: the first time for all that is imported and compiled as it is needed.
    """
    row, path, inputs, threads, *origins = sys.argv[1:]
    torch.set_num_threads(int(threads))
    batch = read_safetensors(Path(inputs), SltError)
    origin = origins[0] if origins else None
    _serve(row, Path(path), origin, batch)
    _clean()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the most that was held counts from here
    before = _held()["VmRSS"]
    run, seconds = _serve(row, Path(path), origin, batch)
    _clean()
    held = _held()
    del run
    print(json.dumps({
        "load_seconds": round(seconds, 3), "resting_bytes": held["VmRSS"] - before,
        "peak_bytes": held["VmHWM"] - before,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
