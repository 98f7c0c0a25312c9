"""Measure the peak memory of a search beside that of fine-tuning with AdamW, as JSON.

    python benchmarks/memory.py
    python benchmarks/memory.py --models gpt2 --options '{"recompute": "blocks", "state": "bf16"}'

Random weights are saved as a checkpoint. Each run is a fresh process on one thread that opens it
with the same data: a search from the source to its ticket, with soft and with rounded gates, or as
many steps of AdamW in fp32. `peak` is the resident memory at its highest less that after the
imports. Options are keys of the recipe's `training` section.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import timm
import torch
from one_shot import WORDS
from surroundings import surroundings
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

RUN = """
import json, sys, tempfile, time
import torch, transformers, accelerate, datasets, timm
import slt_compress
from slt_compress.searching import running, workloads
from slt_compress.searching.recipes import parse_recipe

torch.set_num_threads(1)
kind, folder, content = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
recipe = parse_recipe(content)

def memory(key):
    with open("/proc/self/status") as lines:
        return 1024 * int(dict(line.split(":", 1) for line in lines)[key].split()[0])

def tune():
    checkpoint, data = workloads.open_source(folder, recipe)
    objective = workloads.checkpoint_workload(checkpoint, data, recipe.objective).objective
    module = checkpoint.module.eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
    for _, batch in zip(range(recipe.training.steps), data.train.epoch(0)):
        objective.loss(module, batch, None).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

before, started = memory("VmRSS"), time.process_time()
if kind == "adamw":
    tune()
else:
    slt_compress.search(folder, recipe=recipe, out=tempfile.mkdtemp(dir=folder) + "/ticket")
print(json.dumps({"processor": time.process_time() - started, "peak": memory("VmHWM") - before}))
"""


def save_timm(name: str, folder: Path) -> dict[str, object]:
    """Save a model of timm; the data section of its recipe."""
    save_for_hf(timm.create_model(name, num_classes=10), folder, safe_serialization=True)
    return {"dataset": "digits", "training": {"batch_size": 8}}


def save_gpt2(_: str, folder: Path) -> dict[str, object]:
    """Save GPT-2 with a tokenizer of a few words, and a text; its recipe."""
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    words = {word: index for index, word in enumerate(["<unk>", *sorted(set(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS * 40) for _ in range(100)))
    return {"dataset": f"{folder}/text.txt", "training": {"batch_size": 1},
            "data": {"max_length": 512}}  # fmt: skip


MODELS = {
    "vit-small": (save_timm, "vit_small_patch16_224"),
    "gpt2": (save_gpt2, "gpt2"),
    "resnet50": (save_timm, "resnet50"),
}


def measured(folder: Path, kind: str, recipe: dict[str, object]) -> dict[str, float]:
    """Peak bytes and processor seconds of one run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, kind, str(folder), json.dumps(recipe)],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    taken: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return taken


def main() -> None:
    """Parse, save each model, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--options", action="append", default=[], type=json.loads)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--objective", default="task")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models.split(","):
        save, architecture = MODELS[name]
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            content = save(architecture, Path(folder))
            recipe = {
                **content, "objective": arguments.objective,
                "evaluation": {"controls": "none", "limit": 8},
            }  # fmt: skip
            given = {**content["training"], "steps": arguments.steps, "device": "cpu",
                     "optimizer": "adam", "hard": 0.5, "selections": 0}  # fmt: skip
            tuned = measured(Path(folder), "adamw", {**recipe, "training": given})
            for options in arguments.options or [{}]:
                taken = measured(
                    Path(folder), "search", {**recipe, "training": {**given, **options}}
                )
                rows.append({"model": name, "options": options, "adamw": tuned, "search": taken,
                             "over_adamw": taken["peak"] / tuned["peak"]})  # fmt: skip
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"steps": arguments.steps, "objective": arguments.objective, "seed": 0,
                      "runs": rows, **surroundings()}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
