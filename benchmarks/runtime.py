"""Time dense and sparse runtimes on models with thinned weights, interleaved, as JSON.

    python benchmarks/runtime.py --out benchmarks/results/runtime.json
    python benchmarks/runtime.py --table benchmarks/results/runtime.json

Weights are random, because their values do not matter for the time. The kept weights of each layer
are random too, and their share differs from layer to layer, as after a global ranking. Results are
written after every model, so an interrupted run keeps what it had.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
import transformers
from surroundings import surroundings
from torch import Tensor, nn

from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.runtime.example_runs import Runs
from slt_compress.runtime.kernel_choice import time_interleaved
from slt_compress.runtime.kernel_plan import RUNTIMES, fit
from slt_compress.sites.sites import find_sites

SPARSITIES = {
    "vit-base": (0.5, 0.8, 0.9, 0.95, 0.98),
    "resnet-50": (0.8, 0.9, 0.95),
    "bert-small": (0.5, 0.9, 0.95),
    "lenet-300-100": (0.5, 0.9, 0.98),
}
BATCHES = {"lenet-300-100": (1, 8, 64)}
# Standard deviation of the logarithm of the layers' densities, around that of the model.
SPREAD = 0.4
ROUNDS, PATIENCE = 9, 8.0


def build(name: str) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A model in eval mode, and its inputs by batch size."""
    torch.manual_seed(0)
    if name == "lenet-300-100":
        return REFERENCE[name].build(10).eval(), lambda batch: torch.randn(batch, 1, 28, 28)
    if name == "bert-small":  # google/bert_uncased_L-4_H-512_A-8, on sentences of 128 tokens
        config = transformers.BertConfig(
            hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048
        )
        module = transformers.BertForSequenceClassification(config).eval()
        return module, lambda batch: torch.randint(config.vocab_size, (batch, 128))
    named = {"vit-base": "vit_base_patch16_224", "resnet-50": "resnet50"}[name]
    module = timm.create_model(named, pretrained=False).eval()
    return module, lambda batch: torch.randn(batch, 3, 224, 224)


def thin_(module: nn.Module, sparsity: float) -> dict[str, tuple[int, ...]]:
    """Set the share `sparsity` of the weights of all sites to 0; returns the sites' shapes."""
    chance = torch.Generator().manual_seed(0)
    sites = find_sites(module).sites
    spread = torch.randn(len(sites), generator=chance).mul(SPREAD).exp()
    sizes = torch.tensor([float(site.numel) for site in sites])
    low, high = 0.0, 10.0  # factor for all densities, which stay at or below 1
    for _ in range(60):
        factor = (low + high) / 2
        kept = float((sizes * (factor * (1 - sparsity) * spread).clamp_max(1)).sum() / sizes.sum())
        low, high = (low, factor) if kept > 1 - sparsity else (factor, high)
    densities = (factor * (1 - sparsity) * spread).clamp_max(1)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for site, density in zip(sites, densities, strict=True):
            weight = parameters[site.name]
            weight.masked_fill_(torch.rand(weight.shape, generator=chance) >= density, 0.0)
    return {site.name: tuple(site.shape) for site in sites}


def measured(name: str, sparsity: float, threads: int) -> Iterator[dict[str, Any]]:
    """A row for each batch size: milliseconds of each runtime, and dense over the others."""
    torch.set_num_threads(threads)
    module, inputs = build(name)
    shapes = thin_(module, sparsity)
    runs: Runs = {b: partial(module, inputs(b)) for b in BATCHES.get(name, (1, 8))}
    started = time.perf_counter()
    fittings = {runtime: fit(module, shapes, runtime, runs) for runtime in RUNTIMES}
    fitting_seconds = time.perf_counter() - started

    def turn_to(runtime: str) -> None:
        for fitting in fittings.values():
            fitting.take_off()
        fittings[runtime].put_on()

    layers = {r: dict(Counter(f.reasons.values())) for r, f in fittings.items() if f.reasons}
    for batch, run in runs.items():
        with torch.inference_mode():
            sides = {runtime: (partial(turn_to, runtime), run) for runtime in RUNTIMES}
            taken = time_interleaved(sides, ROUNDS if name != "lenet-300-100" else 101, PATIENCE)
        middle = {runtime: 1000 * median(times) for runtime, times in taken.items()}
        yield {
            "model": name,
            "sparsity": sparsity,
            "threads": threads,
            "batch": batch,
            "rounds": len(taken["dense"]),
            "ms": {r: [round(1000 * f(t), 4) for f in (median, min, max)]
                   for r, t in taken.items()},
            "dense_over": {r: round(middle["dense"] / middle[r], 3) for r in RUNTIMES[1:]},
            "choosing_seconds": round(fitting_seconds, 1),
            "layers": layers,
        }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The Markdown table: dense over `auto`, and over `sparse`, by sparsity.

    Where `auto` uses no kernel it is `dense`, and any ratio would be noise.
    """
    sparsities = sorted({row["sparsity"] for row in rows})
    yield (
        "| model | threads | batch | dense, ms | "
        + " | ".join(f"{100 * value:g} %" for value in sparsities)
        + " |"
    )
    yield "|---|---|---|---|" + "---|" * len(sparsities)
    cases = dict.fromkeys((row["model"], row["threads"], row["batch"]) for row in rows)
    for case in cases:
        by_sparsity = {
            row["sparsity"]: row
            for row in rows
            if (row["model"], row["threads"], row["batch"]) == case
        }
        dense = median(row["ms"]["dense"][0] for row in by_sparsity.values())
        cells = [
            cell(by_sparsity[value]) if value in by_sparsity else ""
            for value in sparsities
        ]  # fmt: skip
        yield f"| {' | '.join(map(str, case))} | {dense:.3g} | {' | '.join(cells)} |"


def cell(row: Mapping[str, Any]) -> str:
    """Dense over `auto` and over `sparse`."""
    over = row["dense_over"]
    auto = f"{over['auto']:.2f}" if uses_kernels(row) else "dense"
    return f"**{auto}** / {over['sparse']:.2f}"


def uses_kernels(row: Mapping[str, Any]) -> bool:
    """Whether `auto` uses a kernel in any layer."""
    return any(not choice.startswith("dense") for choice in row["layers"]["auto"])


def main() -> None:
    """Parse, measure or print the table of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(SPARSITIES))
    parser.add_argument("--sparsities", help="separated by commas; default: by model")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--out", type=Path, help="written after every row; default: printed")
    parser.add_argument("--table", type=Path, help="print the table of this file instead")
    arguments = parser.parse_args()
    if arguments.table is not None:
        print("\n".join(table(json.loads(arguments.table.read_text())["rows"])))
        return
    rows: list[dict[str, Any]] = []
    for name in arguments.models.split(","):
        chosen = arguments.sparsities
        sparsities = [float(s) for s in chosen.split(",")] if chosen else SPARSITIES[name]
        for threads in (int(count) for count in arguments.threads.split(",")):
            for sparsity in sparsities:
                rows += measured(name, sparsity, threads)
                facts = {"seed": 0, "spread": SPREAD, "llvmlite": version("llvmlite")}
                text = json.dumps({**facts, "rows": rows, **surroundings()}, indent=2)
                if arguments.out is not None:
                    arguments.out.write_text(text + "\n")
    if arguments.out is None:
        print(text)
    worst = min((row["dense_over"]["auto"] for row in rows if uses_kernels(row)), default=1.0)
    print(f"auto at its worst: {worst:.3f} of the speed of dense")


if __name__ == "__main__":
    main()
