"""Time the decoding of a causal language model, token by token, dense and sparse, as JSON.

    python benchmarks/decode.py --source SmolLM2-135M --out benchmarks/results/decode-smollm2.json

Batch 1 with a key-value cache, greedy, after a prompt of 16 tokens. The linear weights are thinned
at random, as their values do not matter for the time; the head is tied to the embedding and stays
dense. Rounds of dense and sparse decoding take turns. On one thread the clock is the
processor time of the process, on more it is that of the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from runtime import thin_
from surroundings import surroundings
from torch import nn

from slt_compress.runtime.kernel_plan import fit

PROMPT, TOKENS, ROUNDS = 16, 16, 5


def decode(module: nn.Module) -> float:
    """Tokens a second of greedy decoding, without the prompt."""
    tokens = torch.arange(1, PROMPT + 1)[None]
    with torch.inference_mode():
        made = module(input_ids=tokens, use_cache=True)
        name = "cache" if "cache" in made else "past_key_values"
        # On one thread, what other programs on the machine take does not count.
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        started = clock()
        for _ in range(TOKENS):
            token = made.logits[:, -1:].argmax(-1)
            made = module(input_ids=token, use_cache=True, **{name: made[name]})
    return TOKENS / (clock() - started)


def measured(source: Path, sparsity: float, threads: int) -> dict[str, Any]:
    """A row: tokens a second of both, their ratio by round, and bytes of the weights."""
    torch.set_num_threads(threads)
    module = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    module.requires_grad_(False)
    shapes = thin_(module, sparsity)
    plan = fit(module, shapes, "sparse", {})
    dense_bytes = sum(parameter.nbytes for parameter in module.parameters())
    replaced = sum(forward.layer.weight.nbytes for forward in plan.forwards.values())
    speeds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for number in range(ROUNDS + 1):
        for name in ("dense", "sparse") if number % 2 else ("sparse", "dense"):
            plan.put_on() if name == "sparse" else plan.take_off()
            speeds[name].append(decode(module))
    kept = {name: values[1:] for name, values in speeds.items()}
    ratios = [s / d for s, d in zip(kept["sparse"], kept["dense"], strict=True)]
    return {
        "sparsity": sparsity,
        "threads": threads,
        "layers": len(plan.forwards),
        "tokens_per_second": {name: round(median(values), 2) for name, values in kept.items()},
        "best_tokens_per_second": {name: round(max(values), 2) for name, values in kept.items()},
        "sparse_over_dense": round(median(ratios), 3),
        "bytes": {"dense": dense_bytes, "sparse": dense_bytes - replaced + plan.nbytes},
        "load": os.getloadavg()[0],
    }


def rows_of(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of all sparsities and thread counts."""
    for threads in (int(count) for count in arguments.threads.split(",")):
        for sparsity in (float(value) for value in arguments.sparsities.split(",")):
            yield measured(arguments.source, sparsity, threads)


def main() -> None:
    """Parse, measure, and write after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--sparsities", default="0.5,0.7,0.9")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--out", type=Path, help="default: printed")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for row in rows_of(arguments):
        rows.append(row)
        text = json.dumps({"rows": rows, "seed": 0, **surroundings()}, indent=2) + "\n"
        print(json.dumps(row))
        if arguments.out is not None:
            arguments.out.write_text(text)


if __name__ == "__main__":
    main()
