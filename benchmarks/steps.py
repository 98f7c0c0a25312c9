"""Time a step of a convolutional network, channels first and channels last, as JSON.

    python benchmarks/steps.py

The figures are medians over rounds of a forward and backward pass of ResNet-20 on random images, in
training mode.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

import torch
from surroundings import surroundings

from slt_compress.checkpoints.reference import REFERENCE


def main() -> None:
    """Parse, time both layouts interleaved, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    module = REFERENCE["resnet20-cifar"].build(10).train()
    first = torch.randn(arguments.batch, 3, 32, 32)
    inputs = {"first": first, "last": first.contiguous(memory_format=torch.channels_last)}
    seconds: dict[str, list[float]] = {name: [] for name in inputs}
    for _ in range(arguments.rounds + 1):
        for name, pixels in inputs.items():
            started = time.perf_counter()
            module(pixels).square().mean().backward()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: median(values[1:]) for name, values in seconds.items()}
    print(json.dumps({"batch": arguments.batch, "rounds": arguments.rounds, "seconds": medians,
                      "first_over_last": medians["first"] / medians["last"], **surroundings()},
                     indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
