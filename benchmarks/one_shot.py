"""Measure memory and time of a one-shot search of a language model, as JSON.

    python benchmarks/one_shot.py

A random Llama of about 135 M parameters is saved and searched in a fresh process on one thread, on
a few windows of text. `peak` is the resident memory at its highest less that after the imports, as
bytes and over the bytes of the checkpoint; `processor` is the seconds from the imports on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from surroundings import surroundings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the mask of a frozen network keeps every weight as it was".split()  # noqa: SIM905
SEARCH = """
import json, sys, time
import torch, transformers, accelerate, datasets
import slt_compress
import slt_compress.searching.running
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from slt_compress.searching.recipes import parse_recipe

def memory():
    with open("/proc/self/status") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return {key: 1024 * int(fields[key].split()[0]) for key in ("VmRSS", "VmHWM")}

torch.set_num_threads(1)
folder, method, controls, pattern, windows = sys.argv[1:]
recipe = parse_recipe({
    "method": method, "pattern": pattern, "target_sparsity": 0.5,
    "data": {"max_length": 128}, "training": {"batch_size": 1, "device": "cpu"},
    "evaluation": {"controls": controls, "limit": int(windows)},
})
before, started = memory()["VmRSS"], time.process_time()
ticket = slt_compress.search(folder, folder + "/text.txt", recipe=recipe, out=folder + "/ticket")
print(json.dumps({"processor": time.process_time() - started, "gates": ticket.masks.total,
                  "peak": memory()["VmHWM"] - before}))
"""


def save_model(folder: Path, dtype: torch.dtype) -> int:
    """Write model, tokenizer and text; the bytes of the weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(["<unk>", *sorted(set(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS * 40) for _ in range(40)))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main() -> None:
    """Parse, save, search, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="magnitude")
    parser.add_argument("--controls", default="fast")
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--windows", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        nbytes = save_model(Path(name), getattr(torch, arguments.dtype))
        done = subprocess.run(
            [sys.executable, "-c", SEARCH, name, arguments.method, arguments.controls,
             arguments.pattern, str(arguments.windows)],
            stdout=subprocess.PIPE, check=True, text=True,
        )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({**vars(arguments), "checkpoint": nbytes, **found,
                      "peak_over_checkpoint": found["peak"] / nbytes, "seed": 0,
                      **surroundings()}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
