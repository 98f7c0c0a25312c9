#!/bin/sh
# onnxruntime 1.32.0 with torch 2.14.1. Expected: MatMulNBitsQuantizer quantises the linear layers of a model that torch exported.
# Seen: whether it does depends on the rank of the example input. Of inputs (batch, features) torch makes Gemm nodes, which
# the tool passes over without a warning: the file keeps its full size. Of (batch, tokens, features) it makes MatMul nodes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 onnx-ir==1.1.0 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import os

import onnx
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn

path = os.environ["FOLDER"] + "/m.onnx"
model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128)).eval()
counts = {}
for shape in ((3, 128), (2, 3, 128)):
    torch.onnx.export(model, (torch.randn(shape),), path, dynamo=True, verbose=False)
    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=True)
    quantizer.process()
    made = quantizer.model.model
    counts[len(shape)] = sum(node.op_type == "MatMulNBits" for node in made.graph.node)
    print(f"input of rank {len(shape)}: {counts[len(shape)]} of 2 layers in 4 bits, "
          f"{made.ByteSize():,} bytes of {onnx.load(path).ByteSize():,}")
assert counts == {2: 0, 3: 2}, "Gemm is quantised now"
PYTHON
