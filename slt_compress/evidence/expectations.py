"""What zeros gain, and where: shown by the plan before a search and by the report after it."""

from __future__ import annotations

from collections.abc import Mapping

# What people run models on, and what it gains from weights that are zero without a pattern.
_RUNTIMES: tuple[tuple[str, str], ...] = (
    (
        "slt-compress on CPUs",
        'load(…, runtime="auto") uses sparse kernels where they are measured to be faster: mostly '
        "from 80 % sparsity on, in float32, with the extra `fast`, and with more memory, not less "
        "(docs/sparsity-and-speed.md; `slt-compress bench` measures yours)",
    ),
    (
        "PyTorch",
        "dense kernels take the same time and memory as before; its CSR kernels seldom win, and "
        "its 2:4 kernels want the 2:4 pattern and an Ampere GPU or newer",
    ),
    ("transformers, timm", "read the dense export as it is; no gain in speed or memory"),
    (
        "ONNX Runtime",
        "can keep zeros sparse on disk (its sparsify_initializers.py) and expands them at load: a "
        "smaller file, no speed",
    ),
    (
        "OpenVINO on CPUs",
        "packs weights sparser than CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE, which is off by "
        "default; it gains for int8 models that are bound by memory",
    ),
    ("TensorRT", "uses the 2:4 pattern only, and often does not choose it"),
    ("XNNPACK, LiteRT", "gain in 1x1 convolutions above about 66 % sparsity, where the graph fits"),
    ("vLLM, llama.cpp, MLX", "gain nothing from zeros"),
)


def expectations(
    sizes: Mapping[str, int], pattern: str, *, permuted: bool = False
) -> tuple[str, ...]:
    """A sentence on the file, by its bytes in each format, on GPUs, and on each runtime.

    `permuted`: the pattern holds in stored orders of inputs.
    """
    smaller = "smaller" if sizes["auto"] < sizes["dense"] else "NOT smaller"
    gpu = "unstructured zeros gain nothing on common GPUs; only the 2:4 pattern has kernels"
    if pattern == "2:4":
        gpu = "the 2:4 pattern has kernels in half precision; a dense export does not use them"
        if permuted:
            gpu += ", and its inputs have to be brought into the stored order first"
    elif pattern in ("neuron", "channel", "head"):
        gpu = "whole units are zero, so that smaller matrices could do the same work"
    return (
        f"disk: the auto format is {smaller} than the dense model; the dense export never is, as "
        "zeros take as many bytes as other numbers",
        f"GPU: {gpu}",
        *(f"{name}: {what}" for name, what in _RUNTIMES),
    )
