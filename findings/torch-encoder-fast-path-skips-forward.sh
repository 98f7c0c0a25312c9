#!/bin/sh
# torch 2.14.1. Expected: a Linear subclass that masks its weight in `forward` is masked wherever it is used.
# Seen: nn.TransformerEncoderLayer in eval mode without gradients hands the raw weights of linear1 and linear2 to a fused
# kernel. `forward` of the subclass is not called, nothing warns, and the output is that of the unmasked layer.
# A parametrization (torch.nn.utils.parametrize) is read as a weight and therefore works.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 numpy==2.4.6
"$folder/v/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.nn import functional as F


class Masked(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 0, self.bias)


torch.manual_seed(0)
layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
whole = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
whole.load_state_dict(layer.state_dict())
for name in ("linear1", "linear2"):
    old = getattr(layer, name)
    new = Masked(old.in_features, old.out_features)
    new.load_state_dict(old.state_dict())
    setattr(layer, name, new)
x = torch.randn(3, 5, 16)
with torch.inference_mode():
    fast, dense = layer(x), whole(x)
slow = layer(x).detach()
print("inference gives the unmasked output:", torch.equal(fast, dense))
print("with gradients the mask counts: largest difference", float((slow - fast).abs().max()))
assert torch.equal(fast, dense), "the fast path calls forward now"
assert float((slow - fast).abs().max()) > 0.1
PYTHON
