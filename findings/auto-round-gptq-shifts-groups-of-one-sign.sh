#!/bin/sh
# auto-round 0.16.1. Expected: in the GPTQ format, 4 bits with zero points, a group of weights that are all 0 or more is rounded
# like any other: a weight of 0 stays 0, and none is off by more than half a step.
# Seen: its zero point is 0, of which the format stores one less. The export stores 0 instead of -1 (15 in four bits), so that
# the group is read with the zero point 1: every weight is a step too low, and what was 0 is negative.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 transformers==5.24.0 auto-round==0.16.1 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import os

import torch
import transformers
from auto_round import AutoRound
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

base, out = os.environ["FOLDER"] + "/base", os.environ["FOLDER"] + "/out"
config = transformers.LlamaConfig(
    vocab_size=96, hidden_size=128, intermediate_size=256, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4,
)
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(config)
layer = "model.layers.0.mlp.up_proj"
weight = model.get_parameter(f"{layer}.weight").data
weight[::2] = weight[::2].abs()  # every second row has one sign
weight *= torch.rand_like(weight) < 0.5
model.save_pretrained(base)
words = models.WordLevel({str(i): i for i in range(96)}, unk_token="0")
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(words), pad_token="0", eos_token="1"
)
scheme = {"bits": 4, "group_size": 128, "sym": False, "data_type": "int", "act_bits": 16}
ids = [torch.randint(0, 96, (1, 32)) for _ in range(8)]
rounder = AutoRound(model, tokenizer, scheme=scheme, iters=0, nsamples=8, seqlen=32, batch_size=2,
                    dataset=ids, device_map="cpu")
rounder.quantize_and_save(out, format="auto_gptq")
path = next(os.path.join(top, f) for top, _, files in os.walk(out) for f in files
            if f.endswith(".safetensors"))
stored, origin = load_file(path), load_file(f"{base}/model.safetensors")[f"{layer}.weight"]
nibbles = 4 * torch.arange(8)
codes = (stored[f"{layer}.qweight"][:, None] >> nibbles[:, None] & 15).reshape(128, 256)
zeros = (stored[f"{layer}.qzeros"][:, :, None] >> nibbles & 15).reshape(1, 256)
scales = stored[f"{layer}.scales"].float()
back = ((codes - (zeros + 1 & 15)) * scales).T
steps = (back - origin) / scales.T
for name, rows in (("one sign", slice(0, None, 2)), ("both signs", slice(1, None, 2))):
    nought = origin[rows] == 0
    lost = float((back[rows][nought] != 0).float().mean())
    print(f"rows of {name}: zero points stored {zeros[0, rows].unique().tolist()}, zeros lost {lost:.0%}, "
          f"median error {float(steps[rows].median()):.2f} steps")
assert (back[::2][origin[::2] == 0] < 0).all(), "zeros stay 0 now"
assert (back[1::2][origin[1::2] == 0] == 0).all()
PYTHON
