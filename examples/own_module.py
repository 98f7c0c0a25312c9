"""A module of your own from end to end: search with your loss, verify, export, load, run."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slt_compress

torch.manual_seed(0)
inputs = torch.randn(640, 16)
targets = (inputs[:, :4].sum(dim=1) > 0).long()
batches = [(inputs[i : i + 64], targets[i : i + 64]) for i in range(0, 640, 64)]
net = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 2))


def loss_fn(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    features, labels = batch
    return F.cross_entropy(module(features), labels)


with tempfile.TemporaryDirectory() as folder:
    ticket = slt_compress.search(
        net,
        batches,
        loss_fn=loss_fn,
        budget=slt_compress.Budget(density=0.25),
        training=slt_compress.Training(steps=300, lr=0.05),
        out=Path(folder) / "ticket",
    )
    exported = slt_compress.export(
        ticket.path, format="auto", model=net, out=Path(folder) / "sparse"
    )
    proof = slt_compress.verify(exported.path, model=net, in_process=True)
    masked = slt_compress.load(exported.path, model=net)

print(f"kept {ticket.masks.kept} of {ticket.masks.total} weights, and changed none")
print(f"{exported.nbytes:,} bytes, {'verified' if proof.ok else 'NOT verified'}")
with torch.inference_mode():
    for name, module in (("all weights", net), ("kept ones", masked)):
        accuracy = (module(inputs).argmax(dim=1) == targets).float().mean()
        print(f"accuracy, {name}: {float(accuracy):.1%}")
