"""Memory of serving, measured in a process of its own: `python -m slt_compress.runtime.resting`.

The process imports all that a runtime needs, notes its memory, loads the model, answers once, and
prints as JSON what it holds then, what it held at most, and how long loading took.
"""

from __future__ import annotations

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
from slt_compress.runtime.kernel_plan import PRECISIONS
from slt_compress.runtime.kernels import can_compile, sparse_rows
from slt_compress.runtime.kernels.linear import Linear
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


def _warm(row: str) -> None:
    """Have everything imported, and the compiler in memory, before the first look at it."""
    name = row.partition(" ")[0]
    if name in ("openvino", "onnxruntime"):
        __import__(name)
    elif name != "dense" and can_compile():
        for precision in PRECISIONS:
            Linear(sparse_rows(torch.eye(64), None, filled=True), precision)(torch.ones(9, 64))


def main() -> None:
    """Measure one row and print it."""
    row, path, inputs, threads, *origin = sys.argv[1:]
    torch.set_num_threads(int(threads))
    _warm(row)
    batch = read_safetensors(Path(inputs), SltError)
    gc.collect()
    release()
    before = _held()["VmRSS"]
    started = time.perf_counter()
    run = _opened(row, Path(path), origin[0] if origin else None)
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        run(batch)
    gc.collect()
    release()
    held = _held()
    print(json.dumps({
        "load_seconds": round(seconds, 3), "resting_bytes": held["VmRSS"] - before,
        "peak_bytes": held["VmHWM"] - before,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
