"""Load a sparse model once, let it choose its kernels for this CPU, and answer requests."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

import slt_compress
from slt_compress.searching.recipes import parse_recipe

recipe = parse_recipe(
    {
        "target_sparsity": 0.9,
        "init": "random",
        "dataset": "digits",
        "training": {"steps": 20, "batch_size": 64},
        "evaluation": {"controls": "none"},
    }
)
with tempfile.TemporaryDirectory() as folder:
    ticket = slt_compress.search("lenet-300-100", recipe=recipe, out=Path(folder) / "ticket")
    artifact = slt_compress.export(ticket.path, format="auto", out=Path(folder) / "sparse")
    dense = slt_compress.load(artifact.path)
    fast = slt_compress.load(artifact.path, runtime="auto")  # dense where that is as fast


def answer(model: torch.nn.Module, image: torch.Tensor) -> int:
    with torch.inference_mode():
        return int(model(image[None]).argmax())


requests = torch.rand(200, 1, 28, 28)
answers = {}
for name, model in (("dense", dense), ("auto", fast)):
    started = time.perf_counter()
    answers[name] = [answer(model, image) for image in requests]
    seconds = time.perf_counter() - started
    print(f"{name}: {len(requests) / seconds:,.0f} requests a second")
print("the same answers" if answers["dense"] == answers["auto"] else "OTHER answers")
for layer, choice in fast.slt_runtime.items():
    print(f"{layer}: {choice}")
