#!/bin/sh
# gguf 0.19.0. Expected: eight bits keep whatever four bits keep.
# Seen: the scale of a block is a float16. Q8_0 divides the largest weight by 127 and Q4_0 by 8, so that a block whose weights are
# below 4e-6 (as after a small gain, or in a layer that was trained away) gets the scale 0 in Q8_0 and is all 0, without a
# message, while Q5_0 and Q4_0 keep it.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q gguf==0.19.0 numpy==2.4.6
"$folder/v/bin/python" - <<'PYTHON'
import numpy as np
from gguf import GGMLQuantizationType as Type, quants

random = np.random.default_rng(0)
weight = random.uniform(-3e-6, 3e-6, (64, 512)).astype(np.float32)
left = {}
for name in ("Q8_0", "Q5_0", "Q4_0"):
    kind = getattr(Type, name)
    back = quants.dequantize(quants.quantize(weight, kind), kind)
    left[name] = float((back != 0).mean())
    error = float(np.abs(back - weight).max() / np.abs(weight).max())
    print(f"{name}: {left[name]:.1%} of the weights are not 0; largest error {error:.0%} of the largest")
assert left["Q8_0"] == 0.0, "Q8_0 keeps small blocks now"
assert left["Q4_0"] > 0.8 and left["Q5_0"] > 0.8
PYTHON
