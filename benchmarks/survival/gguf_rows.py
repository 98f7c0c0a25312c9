"""Rows of GGUF: what the package gguf writes, and llama.cpp's own code by the package libgguf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Made = Iterator[tuple[str, Path]]
QUERIES = ("q_proj", "k_proj")
BY_PACKAGE = ("Q8_0", "Q5_0", "Q4_0", "MXFP4", "Q5_1", "Q4_1", "BF16")
BY_LLAMA = (
    "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S",
    "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "NVFP4", "TQ2_0", "TQ1_0",
)  # fmt: skip


def turned(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries and keys by head, as the converter of llama.cpp writes them."""
    rows = weight.reshape(heads, 2, len(weight) // heads // 2, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, base: Path, heads: int, kind: Any, encode: Callable[[Any], Any]) -> None:
    """All matrices of a model in one kind of block."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "llama")
    writer.add_head_count(heads)
    for place, (name, weight) in enumerate(load_file(base / "model.safetensors").items()):
        weight = turned(weight, heads) if any(part in name for part in QUERIES) else weight
        data = weight.numpy().copy()
        if weight.dim() == 2:
            writer.add_tensor(f"blk.{place}.weight", encode(data), raw_dtype=kind)
        else:
            writer.add_tensor(f"blk.{place}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf(base: Path, out: Path, model: Any) -> Made:
    """What the package can write."""
    from gguf import GGMLQuantizationType, quants

    for label in BY_PACKAGE:
        kind, path = getattr(GGMLQuantizationType, label), out / f"{label}.gguf"
        heads = model.config.num_attention_heads
        write(path, base, heads, kind, lambda data, kind=kind: quants.quantize(data, kind))
        yield f"GGUF {label}", path


def k_quants(base: Path, out: Path, model: Any) -> Made:
    """What llama.cpp can write, by its own code (requirements-gguf.txt)."""
    import libgguf
    import numpy as np
    from gguf import GGMLQuantizationType

    for label in BY_LLAMA:
        kind, path = getattr(GGMLQuantizationType, label), out / f"{label}.gguf"

        def encode(data: Any, kind: Any = kind) -> Any:
            even = np.ones(data.shape[1], dtype=np.float32)
            needed = libgguf.quantize_requires_imatrix(kind)
            coded = libgguf.quantize_rows(data, kind, imatrix=even if needed else None)
            return np.asarray(coded).reshape(len(data), -1)

        write(path, base, model.config.num_attention_heads, kind, encode)
        yield f"GGUF {label}", path
