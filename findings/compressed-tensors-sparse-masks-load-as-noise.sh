#!/bin/sh
# compressed-tensors 0.20.0 with transformers 5.24.0. Expected: a checkpoint in the format sparse-bitmask, which earlier
# releases wrote and the package still names, is opened or refused.
# Seen: its configuration is accepted, no compressor reads the masks, and every masked layer is random. from_pretrained
# returns the model; its report of unexpected and missing keys is all that is said.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 transformers==5.24.0 compressed-tensors==0.20.0 accelerate==1.15.0 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import json
import os

import torch
import transformers
from compressed_tensors.config import CompressionFormat
from safetensors.torch import load_file, save_file

folder = os.environ["FOLDER"] + "/model"
config = transformers.LlamaConfig(
    vocab_size=40, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=4,
)
torch.manual_seed(0)
transformers.LlamaForCausalLM(config).save_pretrained(folder)
weights = load_file(f"{folder}/model.safetensors")
name = "model.layers.0.mlp.up_proj.weight"
stored = dict(weights)
for key in [key for key in weights if "proj" in key]:
    weight = stored.pop(key)
    mask = torch.rand_like(weight) < 0.5
    places = 2 ** torch.arange(8)
    stored |= {
        f"{key}.compressed": weight[mask],
        f"{key}.bitmask": (mask.reshape(len(mask), -1, 8) * places).sum(-1).to(torch.uint8),
        f"{key}.shape": torch.tensor(weight.shape),
        f"{key}.row_offsets": mask.sum(1).cumsum(0) - mask.sum(1),
    }
save_file(stored, f"{folder}/model.safetensors", metadata={"format": "pt"})
with open(f"{folder}/config.json") as file:
    facts = json.load(file)
facts["quantization_config"] = {
    "quant_method": "compressed-tensors", "format": "dense",
    "sparsity_config": {
        "format": "sparse-bitmask", "global_sparsity": 0.5, "sparsity_structure": "unstructured",
        "targets": ["Linear"], "ignore": ["lm_head"],
    },
}
with open(f"{folder}/config.json", "w") as file:
    json.dump(facts, file)
opened = transformers.LlamaForCausalLM.from_pretrained(folder).get_parameter(name)
alike = float(torch.cosine_similarity(opened.flatten(), weights[name].flatten(), dim=0))
zeros = float((opened == 0).float().mean())
print(f"sparse-bitmask is a format by name: {'sparse-bitmask' in [f.value for f in CompressionFormat]}")
print(f"{name}: {zeros:.0%} zeros instead of 50 %, cosine to the stored weight {alike:.2f}")
assert zeros < 0.01 and abs(alike) < 0.2, "the masks are read now"
PYTHON
