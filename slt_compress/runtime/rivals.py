"""Other runtimes that a user could take instead, on the same masked model: onnxruntime, OpenVINO.

Both open the dense model as an ONNX file, zeros and all, which is what they are given in practice.
OpenVINO takes a lower precision where the processor has one, unless it is told not to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slt_compress.artifacts import ONNX_MODEL
from slt_compress.artifacts.onnx_file import answer, open_session, require_onnx, trace, write_onnx
from slt_compress.checkpoints import Checkpoint
from slt_compress.errors import SltError

# The rows that each rival makes; OpenVINO has one of its defaults and one in float32.
RIVALS = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino", "openvino fp32")}
Answer = Callable[[Mapping[str, Tensor]], Tensor]


def check_rivals(names: tuple[str, ...]) -> None:
    """Refuse a rival that is unknown or not installed.

    Raises:
        SltError: with a sentence that says how to install it.
    """
    for name in names:
        if name not in RIVALS:
            raise SltError(f"unknown rival {name!r}; known: {', '.join(RIVALS)}")
        if find_spec(name) is None:
            raise SltError(f"{name} is not installed: pip install 'slt-compress[bench]'")
    if names:
        require_onnx()


def write_model(checkpoint: Checkpoint, inputs: Mapping[str, Tensor], folder: Path) -> None:
    """Write the dense masked model as ONNX, for any batch size where it can be.

    Raises:
        ArtifactError: torch's exporter fails.
    """
    free = {name: {0: "batch"} for name, value in inputs.items() if value.dim()}
    program = trace(checkpoint.module, checkpoint.forward, inputs, free)
    write_onnx(program, folder)


def open_rival(row: str, folder: Path) -> tuple[Answer, float]:
    """A rival with the model in a folder, on as many threads as torch, and seconds of opening it.

    Raises:
        SltError: it does not open the model.
    """
    started = time.perf_counter()
    made = _openvino(folder, row) if row.startswith("openvino") else _onnxruntime(folder)
    return made, time.perf_counter() - started


def _onnxruntime(folder: Path) -> Answer:
    session = open_session(folder)
    return lambda inputs: answer(session, inputs)


def _openvino(folder: Path, row: str) -> Answer:
    import openvino

    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if row.endswith("fp32"):
        settings["INFERENCE_PRECISION_HINT"] = "f32"
    try:
        model = openvino.Core().compile_model(str(folder / ONNX_MODEL), "CPU", settings)
    except Exception as cause:  # it raises RuntimeError and its own
        reason = " ".join(str(cause).split())[:200]
        raise SltError(f"OpenVINO does not open the model: {reason}") from cause

    def run(inputs: Mapping[str, Tensor]) -> Tensor:
        outputs = model({name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(next(iter(outputs.values())).copy())

    return run
