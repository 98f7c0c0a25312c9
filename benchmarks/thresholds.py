"""Time the thresholds of a rounded step, beside partitions of all scores together, as JSON.

    python benchmarks/thresholds.py

Processor nanoseconds per gate of a global budget of 10 %, on one thread; medians of rounds taken in
turns. `partitioned` is what a step did before: all scores in one tensor, partitioned for the floors
and again for the value. Both give the same thresholds, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from statistics import median

import numpy as np
import torch
from surroundings import surroundings
from torch import Tensor

from slt_compress.checkpoints import sketch_checkpoint
from slt_compress.sites.budget import Budget, hard_thresholds
from slt_compress.sites.sites import find_sites

MODELS = ("timm:vit_small_patch16_224", "timm:resnet50", "lenet-300-100")
DENSITY = 0.1


def partitioned(scores: Mapping[str, Tensor]) -> float:
    """One threshold for all sites, none of which falls below its floor."""
    value, sizes = 0.0, [score.numel() for score in scores.values()]
    kept = round(DENSITY * sum(sizes))
    for _ in range(2):
        flat = torch.cat([score.reshape(-1) for score in scores.values()])
        rank = flat.numel() - kept - 1
        value = float(np.partition(flat.numpy(), rank)[rank])
        keep = flat > value
        _ = [float(piece.sum()) for piece in keep.split(sizes)]
    return value


def scores_of(name: str, seed: int) -> dict[str, Tensor]:
    """Scores as a search has them half-way: a rank in each layer, and noise."""
    generator = torch.Generator().manual_seed(seed)
    sites = find_sites(sketch_checkpoint(name, init="random").module).sites
    return {
        site.name: 8.0 * torch.rand(site.shape, generator=generator)
        + 0.3 * torch.randn(site.shape, generator=generator)
        for site in sites
    }


def main() -> None:
    """Parse, time both in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models = {}
    for name in MODELS:
        scores = scores_of(name, arguments.seed)
        budget, gates = Budget(density=DENSITY), sum(score.numel() for score in scores.values())
        times = max(1, 1_000_000 // gates)
        seconds: dict[str, list[float]] = {"partitioned": [], "bracketed": []}
        for _ in range(arguments.rounds + 1):
            started = time.process_time()
            for _ in range(times):
                before = partitioned(scores)
            middle = time.process_time()
            for _ in range(times):
                after = hard_thresholds(scores, budget, DENSITY)
            seconds["partitioned"].append(middle - started)
            seconds["bracketed"].append(time.process_time() - middle)
            if set(after.values()) != {before}:
                raise SystemExit(f"{name}: {set(after.values())} is not {before}")
        taken = {k: 1e9 * median(s[1:]) / gates / times for k, s in seconds.items()}
        models[name] = {"gates": gates, "nanoseconds_per_gate": taken,
                        "ratio": taken["bracketed"] / taken["partitioned"]}  # fmt: skip
    print(json.dumps({"rounds": arguments.rounds, "seed": arguments.seed, "density": DENSITY,
                      "models": models, **surroundings()}, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
