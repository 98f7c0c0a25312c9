#!/bin/sh
# gguf 0.19.0. Expected: a weight that is exactly 0 stays 0 when it is quantised.
# Seen: Q4_1 and Q5_1 store a block as scale * code + minimum, with both in float16. A block of a sparse weight that
# has a negative value gets a minimum below 0, and the code next to 0 gives a small number instead of 0: about four
# fifths of the zeros of a weight with 90 % zeros are lost. Q4_0, Q5_0 and Q8_0 keep them all.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q gguf==0.19.0 numpy==2.4.6
"$folder/v/bin/python" - <<'PYTHON'
import numpy as np
from gguf import GGMLQuantizationType as Type, quants

random = np.random.default_rng(0)
weight = random.standard_normal((256, 512), dtype=np.float32) * (random.random((256, 512)) < 0.1)
zero = weight == 0
kept = {}
for name in ("Q8_0", "Q5_0", "Q4_0", "Q5_1", "Q4_1"):
    kind = getattr(Type, name)
    back = quants.dequantize(quants.quantize(weight, kind), kind)
    kept[name] = float((back[zero] == 0).mean())
    print(f"{name}: {kept[name]:.1%} of the zeros are still 0")
assert kept["Q8_0"] == kept["Q5_0"] == kept["Q4_0"] == 1.0
assert kept["Q5_1"] < 0.3 and kept["Q4_1"] < 0.3, "gguf keeps zeros now"
PYTHON
