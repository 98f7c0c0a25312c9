#!/bin/sh
# transformers 5.24.0. Expected: AutoTokenizer.from_pretrained on a folder without files of a tokenizer is an error.
# Seen: with nothing but a config.json of BERT, GPT-2 or RoBERTa it returns a tokenizer of one to five tokens. All words of BERT
# are [UNK]; GPT-2 and RoBERTa drop the text without a message, so that a training run sees empty inputs. Llama is refused.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q torch==2.14.1 transformers==5.24.0 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import os

import transformers

sizes, tokens = {}, {}
for name in ("Bert", "GPT2", "Roberta", "Llama"):
    folder = f"{os.environ['FOLDER']}/{name}"
    getattr(transformers, f"{name}Config")().save_pretrained(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except ValueError:
        sizes[name] = None
        continue
    sizes[name], tokens[name] = len(tokenizer), tokenizer.tokenize("hello world")
print(f"size of the vocabulary: {sizes}; 'hello world' becomes {tokens}")
assert sizes == {"Bert": 5, "GPT2": 1, "Roberta": 5, "Llama": None}, "it is refused now"
assert tokens["GPT2"] == tokens["Roberta"] == []
PYTHON
