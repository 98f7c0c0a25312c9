#!/bin/sh
# bitsandbytes 0.50.2. Expected: quantize_blockwise keeps a weight that is exactly 0, as its table of 256 numbers has 0.
# Seen: on a CPU every 0 of a block with other numbers gets a code a few places above that of 0, so that no zero of a
# sparse weight survives. A number close to 0 is stored wrongly as well: its nearest code is another one.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 bitsandbytes==0.50.2 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import torch
from bitsandbytes import functional

torch.manual_seed(0)
weight = torch.randn(64, 64)
weight *= torch.rand_like(weight) < 0.1
zero = weight == 0
codes, state = functional.quantize_blockwise(weight)
back = functional.dequantize_blockwise(codes, state).reshape(weight.shape)
place = int((state.code == 0).nonzero())
used = codes.reshape(weight.shape)[zero].unique().tolist()
print(f"the table has 0 at place {place}; zeros were stored as {used}")
print(f"zeros that are still 0: {float((back[zero] == 0).float().mean()):.1%}, of {int(zero.sum())}")
assert state.code[place] == 0
assert not (back[zero] == 0).any(), "zeros stay 0 now"
PYTHON
