"""Measure the memory and time of searches block by block, as JSON.

    python benchmarks/reconstruct.py                       # 4, 8 and 16 equal blocks
    python benchmarks/reconstruct.py --demonstration       # 1.2 B weights, through all verbs

A random Llama is written in shards, and each search runs in a fresh process on one thread, on a few
windows of text. `peak` is the resident memory at its highest less that after the imports, in bytes.
The demonstration searches by magnitude and by blocks, exports to `auto` and verifies the export;
there `peak` is all memory of the process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from one_shot import WORDS
from safetensors.torch import save_file
from surroundings import surroundings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

RUN = """
import json, sys, time
import torch, transformers, accelerate, datasets
import slt_compress, slt_compress.searching.running, slt_compress.exporting.folders
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from slt_compress.searching.recipes import parse_recipe

def memory():
    with open("/proc/self/status") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return {key: 1024 * int(fields[key].split()[0]) for key in ("VmRSS", "VmHWM")}

torch.set_num_threads(1)
verb, folder, out, recipe = sys.argv[1:]
before, started, processor = memory()["VmRSS"], time.monotonic(), time.process_time()
answer = {}
if verb == "search":
    ticket = slt_compress.search(
        folder, folder + "/text.txt", recipe=parse_recipe(json.loads(recipe)), out=out)
    answer = {"gates": ticket.masks.total, "kept": ticket.masks.kept}
elif verb == "export":
    answer = {"bytes": slt_compress.export(folder, format="auto", out=out).nbytes}
else:
    answer = {"ok": slt_compress.verify(folder, in_process=True).ok}
print(json.dumps({**answer, "seconds": round(time.monotonic() - started, 1),
                  "processor": round(time.process_time() - processor, 1),
                  "peak": memory()["VmHWM"] - (0 if recipe == "whole" else before),
                  "imports": before}))
"""
EQUAL = {"vocab_size": 64, "hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 8,
         "num_key_value_heads": 8}  # fmt: skip
LARGE = {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
         "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 24}  # fmt: skip


def save_model(folder: Path, dtype: torch.dtype, **config: Any) -> dict[str, int]:
    """Write config, shards, tokenizer and text; the numbers of weights and of bytes."""
    folder.mkdir(parents=True)
    made = LlamaConfig(max_position_embeddings=512, tie_word_embeddings=False, dtype=dtype,
                       architectures=["LlamaForCausalLM"], **config)  # fmt: skip
    made.save_pretrained(folder)
    with torch.device("meta"):
        shells = LlamaForCausalLM(made).state_dict()
    places: dict[str, str] = {}
    shards: dict[str, list[str]] = {}
    for name in shells:
        block = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{block}.safetensors", []).append(name)
    generator, count = torch.Generator().manual_seed(0), 0
    for file, names in shards.items():
        tensors = {}
        for name in names:
            shape = shells[name].shape
            ones = torch.ones(shape, dtype=dtype)
            tensors[name] = ones if len(shape) < 2 else torch.empty(shape).normal_(
                0.0, 0.02, generator=generator).to(dtype)  # fmt: skip
            count += tensors[name].numel()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    vocabulary = {word: index for index, word in enumerate(["<unk>", *sorted(set(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS * 40) for _ in range(40)))
    return {"weights": count, "checkpoint": sum(f.stat().st_size for f in folder.glob("*.saf*"))}


def run(verb: str, folder: Path, out: Path, recipe: str = "whole") -> dict[str, Any]:
    """What one verb took, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", RUN, verb, str(folder), str(out), recipe],
                          stdout=subprocess.PIPE, check=True, text=True)  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def recipe(method: str, objective: str, *, steps: int, windows: int, length: int) -> str:
    """The recipe of a search, as JSON."""
    return json.dumps({
        "method": method, "objective": objective, "target_sparsity": 0.5,
        "data": {"max_length": length}, "evaluation": {"limit": windows, "controls": "fast"},
        "training": {"batch_size": 1, "device": "cpu", "steps": steps},
    })  # fmt: skip


def flatness(root: Path, method: str, blocks: list[int]) -> dict[str, Any]:
    """The peak memory for each number of equal blocks."""
    runs = {}
    for count in blocks:
        folder = root / str(count)
        size = save_model(folder, torch.float32, num_hidden_layers=count, **EQUAL)
        made = recipe(method, "reconstruct", steps=3, windows=2, length=64)
        runs[str(count)] = {**size, **run("search", folder, root / f"{count}-ticket", made)}
    peaks = [entry["peak"] for entry in runs.values()]
    return {"method": method, "blocks": runs, "largest_over_smallest": max(peaks) / min(peaks)}


def demonstration(root: Path) -> dict[str, Any]:
    """Both searches of the large model, an export of each, and its proof."""
    size = save_model(root / "large", torch.bfloat16, **LARGE)
    found: dict[str, Any] = dict(size)
    for name, method, objective in (
        ("magnitude", "magnitude", "task"), ("reconstruct", "relaxed", "reconstruct"),
    ):  # fmt: skip
        ticket, export = root / name, root / f"{name}-auto"
        made = recipe(method, objective, steps=3, windows=1, length=16)
        found[name] = {
            "search": run("search", root / "large", ticket, made),
            "export": run("export", ticket, export),
            "verify": run("verify", export, export),
        }
        print(json.dumps({name: found[name]}), file=sys.stderr)
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demonstration", action="store_true")
    parser.add_argument("--method", default="relaxed")
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--folder", type=Path, help="Where the models are written.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        found = (
            demonstration(root) if arguments.demonstration
            else flatness(root, arguments.method, arguments.blocks)
        )  # fmt: skip
    print(json.dumps({**found, "seed": 0, **surroundings()}, indent=2))


if __name__ == "__main__":
    main()
