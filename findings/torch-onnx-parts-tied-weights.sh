#!/bin/sh
# torch 2.14.1 with onnxscript 0.7.2. Expected: weights that a model ties are stored once in its ONNX file.
# Seen: the exporter folds the transposition of the head into a copy of its own, so that embedding and head are two
# initializers: the file grows by the largest matrix of a small language model, and a later step changes one of the two.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import os

import onnx
import torch
from onnx import numpy_helper
from torch import nn


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(96, 64)
        self.head = nn.Linear(64, 96, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


path = os.environ["FOLDER"] + "/m.onnx"
torch.manual_seed(0)
model = Tied().eval()
torch.onnx.export(model, (torch.zeros(1, 4, dtype=torch.long),), path, dynamo=True, verbose=False)
stored = {e.name: numpy_helper.to_array(e) for e in onnx.load(path).graph.initializer}
copies = {name: array.shape for name, array in stored.items() if array.size == 96 * 64}
print(f"one parameter of {96 * 64} numbers; matrices of this size in the file: {copies}")
assert sum(p.numel() for p in model.parameters()) == 96 * 64
assert len(copies) == 2, "it is stored once now"
PYTHON
