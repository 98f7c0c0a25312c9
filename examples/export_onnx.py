"""Export a masked model for onnxruntime, run it there, and prove what the file holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

import slt_compress
from slt_compress.evidence.audit import audit_model
from slt_compress.searching.recipes import parse_recipe

recipe = parse_recipe(
    {
        "target_sparsity": 0.8,
        "init": "random",
        "dataset": "digits",
        "training": {"steps": 20, "batch_size": 64},
        "evaluation": {"controls": "none"},
    }
)
with tempfile.TemporaryDirectory() as folder:
    ticket = slt_compress.search("lenet-300-100", recipe=recipe, out=Path(folder) / "ticket")
    exported = slt_compress.export(ticket.path, format="onnx", out=Path(folder) / "onnx")
    session = onnxruntime.InferenceSession(exported.path / "model.onnx")
    images = np.random.default_rng(0).random((5, 1, 28, 28), np.float32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    print(f"onnxruntime answers for {len(logits)} images, {logits.shape[1]} classes")
    proof = slt_compress.verify(exported.path, in_process=True)
    print("verified" if proof.ok else "NOT verified")
    # what comes next may lose zeros: docs/after-the-mask.md; audit says whether it did
    print(audit_model(exported.path / "model.onnx", ticket.path).verdict)
