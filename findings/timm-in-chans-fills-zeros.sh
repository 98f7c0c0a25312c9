#!/bin/sh
# timm 1.0.31. Expected: a sparse first convolution stays sparse when a checkpoint is opened for pictures of one channel.
# Seen: create_model(..., in_chans=1) sums the three input channels of the first convolution. A position is 0 only where all
# three were, so that a weight with 90 % zeros has about 73 % (0.9 cubed), without a message.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import os

import timm
import torch
from safetensors.torch import save_file

torch.manual_seed(0)
model = timm.create_model("resnet10t", num_classes=3)
first = model.conv1[0].weight
first.data *= torch.rand_like(first) < 0.1
path = os.environ["FOLDER"] + "/model.safetensors"
save_file(model.state_dict(), path)
opened = timm.create_model(
    "resnet10t", num_classes=3, in_chans=1, pretrained=True,
    pretrained_cfg_overlay={"file": path, "first_conv": "conv1.0", "num_classes": 3},
)
before, after = (float((w == 0).float().mean()) for w in (first, opened.conv1[0].weight))
print(f"zeros of the first convolution: {before:.1%} in the file, {after:.1%} with in_chans=1")
assert before > 0.85 and after < 0.8, "the zeros stay now"
PYTHON
