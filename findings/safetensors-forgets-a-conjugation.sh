#!/bin/sh
# safetensors 0.8.0 with torch 2.14.1. Expected: load(save(tensors)) gives back what was saved, or save refuses, as it does for
# transposed and expanded tensors.
# Seen: tensor.conj() of torch is a view with a flag, and contiguous. safetensors writes the bytes below the flag, so that the
# file holds the tensor that was not conjugated, without a message. tensor.resolve_conj() is written rightly.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 safetensors==0.8.0 numpy==2.4.6
"$folder/v/bin/python" - <<'PYTHON'
import torch
from safetensors.torch import load, save

torch.manual_seed(0)
weight = torch.randn(8, 8, dtype=torch.complex64)
adjoint = weight.conj()
back = load(save({"w": adjoint}))["w"]
resolved = load(save({"w": adjoint.resolve_conj()}))["w"]
print(f"what was saved comes back: {torch.equal(back, adjoint)}; its conjugate does: "
      f"{torch.equal(back, weight)}; resolved first, it comes back: {torch.equal(resolved, adjoint)}")
assert torch.equal(resolved, adjoint)
assert torch.equal(back, weight), "a conjugated tensor is saved rightly now"
PYTHON
