"""Time putting gates on the sites of a model and removing them again, as JSON.

    python benchmarks/insertion.py

The figures are milliseconds of processor time per site, without allocating the scores; medians of
rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import torch
from surroundings import surroundings

from slt_compress.checkpoints import sketch_checkpoint
from slt_compress.gates.gating import gated
from slt_compress.sites.sites import find_sites

MODELS = (
    "timm:resnet50", "timm:vit_base_patch16_224", "timm:convnext_tiny",
    "timm:swin_tiny_patch4_window7_224", "timm:efficientnet_b0", "timm:mixer_b16_224",
)  # fmt: skip


def main() -> None:
    """Parse, time every model on the meta device, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models: dict[str, dict[str, float]] = {}
    for name in MODELS:
        module = sketch_checkpoint(name).module
        plan = find_sites(module)
        seconds: dict[str, list[float]] = {"on": [], "off": []}
        for _ in range(arguments.rounds + 1):
            started = time.process_time()
            with gated(module, plan):
                on = time.process_time()
            seconds["on"].append(on - started)
            seconds["off"].append(time.process_time() - on)
        times = {key: 1e3 * median(taken[1:]) / len(plan.sites) for key, taken in seconds.items()}
        models[name] = {"sites": len(plan.sites), **times}
    middle = median(entry["on"] for entry in models.values())
    print(json.dumps({"milliseconds_per_site": middle, "models": models, **surroundings()},
                     indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
