"""Time of one masked layer in engines, over the same engine's dense run, interleaved.

    python benchmarks/survival/engines.py

One layer of 3072 x 768 on 197 tokens, one thread. Needs requirements-openvino.txt and onnxruntime.
The figures are medians of ratios of the processor time of neighbouring runs, so that a busy machine
disturbs both alike, and little.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import scipy.sparse
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

OUT, IN, TOKENS, ROUNDS = 3072, 768, 197, 15
Run = Callable[[], Any]


def model_of(weight: np.ndarray, folder: Path) -> Path:
    """The layer as an ONNX file."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [TOKENS, size])
        for name, size in (("x", IN), ("y", OUT))
    ]
    entry = numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1],
                              ends[1:], [entry])  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / f"{abs(hash(weight.tobytes()))}.onnx"
    onnx.save(made, path)
    return path


def by_onnxruntime(path: Path, x: np.ndarray) -> Run:
    """A session with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def by_openvino(path: Path, x: np.ndarray, rate: float | None) -> Run:
    """A compiled model with one thread, with the property for sparse weights or without."""
    facts: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1}
    if rate is not None:
        facts["CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"] = rate
    compiled = openvino.Core().compile_model(str(path), "CPU", facts)
    request = compiled.create_infer_request()
    return lambda: request.infer({0: x})


def engines(sparse: np.ndarray, dense: np.ndarray, folder: Path) -> Iterator[tuple[str, Run, Run]]:
    """A name, the masked run, and the dense one that it is compared with."""
    x = np.random.default_rng(1).standard_normal((TOKENS, IN), dtype=np.float32)
    tensor, weight, full = (torch.from_numpy(array) for array in (x, sparse, dense))
    torch_dense = lambda: F.linear(tensor, full)  # noqa: E731
    files = model_of(sparse, folder), model_of(dense, folder)
    yield "onnxruntime", by_onnxruntime(files[0], x), by_onnxruntime(files[1], x)
    yield "OpenVINO", by_openvino(files[0], x, None), by_openvino(files[1], x, None)
    yield "OpenVINO, sparse property", by_openvino(files[0], x, 0.8), by_openvino(files[1], x, None)
    yield "torch, dense kernel", lambda: F.linear(tensor, weight), torch_dense
    csr, turned = weight.to_sparse_csr(), tensor.T.contiguous()
    yield "torch, csr @ x.T", lambda: csr @ turned, torch_dense
    yield "torch, F.linear(x, csr)", lambda: F.linear(tensor, csr), torch_dense
    blocks = blocked(weight).to_sparse_bsr((8, 8))
    yield "torch, BSR of 8 x 8 blocks", lambda: blocks @ turned, torch_dense
    rows, columns = scipy.sparse.csr_array(sparse), np.ascontiguousarray(x.T)
    yield "scipy csr", lambda: rows @ columns, torch_dense


def blocked(weight: torch.Tensor) -> torch.Tensor:
    """As many zeros, in blocks of 8 x 8."""
    density = float((weight != 0).float().mean())
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(OUT // 8, IN // 8, generator=generator) < density
    whole = torch.randn(OUT, IN, generator=generator)
    return whole * kept.repeat_interleave(8, 0).repeat_interleave(8, 1)


def ratio(masked: Run, dense: Run) -> float:
    """The median of the ratios of neighbouring runs."""
    seconds = {masked: 0.0, dense: 0.0}
    ratios = []
    for turn in range(ROUNDS + 2):
        for run in (masked, dense) if turn % 2 else (dense, masked):
            started = time.process_time()
            run()
            seconds[run] = time.process_time() - started
        ratios.append(seconds[masked] / seconds[dense])
    return statistics.median(ratios[2:])


def main() -> None:
    """Print a table and JSON."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # torch says that its sparse layouts are in beta
    random = np.random.default_rng(0)
    dense = random.standard_normal((OUT, IN), dtype=np.float32)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        for sparsity in (0.9, 0.95):
            sparse = dense * (random.random((OUT, IN)) >= sparsity).astype(np.float32)
            for label, masked, whole in engines(sparse, dense, Path(name)):
                found.setdefault(label, {})[str(sparsity)] = round(ratio(masked, whole), 3)
    for label, ratios in found.items():
        print(f"| {label} | " + " | ".join(f"{value:.2f}" for value in ratios.values()) + " |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
