"""Two tasks as two masks on one random network: one set of weights, swapped like adapters."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slt_compress

torch.manual_seed(0)
inputs = torch.randn(960, 16)
tasks = {
    "first": (inputs[:, :4].sum(dim=1) > 0).long(),
    "last": (inputs[:, 12:].sum(dim=1) > 0).long(),
}
net = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 2))


def loss_fn(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    features, labels = batch
    return F.cross_entropy(module(features), labels)


def accuracy(labels: Tensor) -> float:
    with torch.inference_mode():
        return float((net(inputs).argmax(dim=1) == labels).float().mean())


with tempfile.TemporaryDirectory() as folder:
    tickets = {}
    for name, labels in tasks.items():
        batches = [(inputs[i : i + 64], labels[i : i + 64]) for i in range(0, 960, 64)]
        tickets[name] = slt_compress.search(
            net,
            batches,
            loss_fn=loss_fn,
            budget=slt_compress.Budget(density=0.3),
            training=slt_compress.Training(steps=300, lr=0.05),
            out=Path(folder) / name,
        )
    base = slt_compress.Base(net)
    for name, ticket in tickets.items():
        base.swap(ticket)
        right = {task: accuracy(labels) for task, labels in tasks.items()}
        print(f"mask of {name!r}: " + ", ".join(f"{t} {share:.0%}" for t, share in right.items()))
    base.remove()  # the weights are as they were, bit for bit

first, last = (ticket.masks for ticket in tickets.values())
shared = sum(int((first[name] & last[name]).sum()) for name in first)
print(f"each mask keeps {first.kept} of {first.total} weights; {shared} are in both")
