#!/bin/sh
# peft 0.21.2. Expected: a DoRA adapter that was never trained leaves the model as it is, as a LoRA adapter does.
# Seen: DoRA divides each row of the weight by its norm. A row that is all 0 (a pruned neuron) has the norm 0, and its
# outputs, its gradients and, after a merge, its weights are NaN.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 peft==0.21.2 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from torch import nn


def adapted(dora):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(64, 64))
    base[0].weight.data[3] = 0
    return get_peft_model(base, LoraConfig(r=4, target_modules=["0"], use_dora=dora))


for dora in (False, True):
    outputs = adapted(dora)(torch.randn(2, 64))
    weight = adapted(dora).merge_and_unload()[0].weight
    name = "DoRA" if dora else "LoRA"
    print(f"{name}: NaN in {int(outputs.isnan().sum())} outputs and {int(weight.isnan().sum())} weights")
    assert bool(outputs.isnan().any()) == bool(weight.isnan().any()) == dora, "no NaN any more"
PYTHON
