"""Time a step of a search beside a step of fine-tuning with AdamW, interleaved, as JSON.

    python benchmarks/search_steps.py

Processor seconds on one thread; medians of rounds in which every kind takes a step in turn. `soft`
gates are sampled; `rounded` ones are those of a search's last phase, with noise in the backward
pass; `rounded throughout` ones have no noise. Images and weights are random.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from surroundings import surroundings
from torch.nn import functional

from slt_compress.checkpoints import open_checkpoint
from slt_compress.checkpoints.tasks import forward_of
from slt_compress.gates import Relaxed
from slt_compress.gates.base import sample_key
from slt_compress.gates.gating import gated
from slt_compress.searching.accelerators import accelerator_for
from slt_compress.searching.objectives import task_objective
from slt_compress.searching.settings import Training, with_defaults
from slt_compress.searching.state import draw
from slt_compress.searching.training import Loop, engine_for
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import find_sites

# source, batch size, side of an image, its channels
MODELS = {
    "vit-small": ("timm:vit_small_patch16_224", 8, 224, 3),
    "resnet50": ("timm:resnet50", 8, 224, 3),
    "lenet-300-100": ("lenet-300-100", 128, 28, 1),
}
# share of the search with rounded gates: the first step of `rounded` is soft, and is not counted
KINDS = {"soft": 0.0, "rounded": 1.0 - 1e-9, "rounded throughout": 1.0}


@dataclass(frozen=True)
class Same:
    """The same batch for ever."""

    batch: dict[str, Any]

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield self.batch

    def epoch(self, index: int) -> Iterator[Any]:
        """The batch."""
        return iter(self)


def opened(source: str) -> Any:
    """A checkpoint of its own for each kind."""
    return open_checkpoint(source, init="default", num_classes=10)


def tuned(source: str, batch: dict[str, Any]) -> Iterator[None]:
    """Steps of AdamW on all weights."""
    checkpoint = opened(source)
    forward = forward_of(checkpoint.family, checkpoint.task)
    module = checkpoint.module.eval().requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=True)
    while True:
        logits = forward(module, batch)
        functional.cross_entropy(logits, batch["labels"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def searched(source: str, batch: dict[str, Any], hard: float, stack: ExitStack) -> Iterator[None]:
    """Steps of a search of Gaussian gates on a global budget."""
    checkpoint, method, budget = opened(source), Relaxed(), Budget(density=0.1)
    module, plan = checkpoint.module, find_sites(checkpoint.module)
    training = with_defaults(
        Training(steps=10**6, hard=hard, device="cpu", start_density=0.1, optimizer="adam"),
        method, budget, random_init=False,
    )  # fmt: skip
    scores = {
        site.name: method.start(torch.empty(site.shape), None, sample_key(0, site.name))
        for site in plan.sites
    }
    accelerator = stack.enter_context(accelerator_for(training))
    gates = stack.enter_context(gated(module, plan, method=method, scores=scores))
    loop = Loop(
        module=module, plan=plan, gates=gates, method=method, budget=budget,
        objective=task_objective(
            forward_of(checkpoint.family, checkpoint.task), checkpoint.task, label_smoothing=0.0
        ),
        batches=Same(batch), start_density=0.1, training=training,
    )  # fmt: skip
    engine = stack.enter_context(engine_for(loop, accelerator))
    state = engine.loop.first_state()
    for drawn in draw(loop.batches, state.position):
        state = engine.step(state, drawn)
        yield


def seconds_of(source: str, batch: dict[str, Any], rounds: int) -> dict[str, float]:
    """Median seconds of each kind of step."""
    with ExitStack() as stack:
        runs = {"adamw": tuned(source, batch)}
        for kind, hard in KINDS.items():
            runs[kind] = searched(source, batch, hard, stack)
        taken: dict[str, list[float]] = {kind: [] for kind in runs}
        for _ in range(rounds + 2):
            for kind, run in runs.items():
                started = time.process_time()
                next(run)
                taken[kind].append(time.process_time() - started)
    return {kind: median(seconds[2:]) for kind, seconds in taken.items()}


def main() -> None:
    """Parse, time each model, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    models = {}
    for name in arguments.models.split(","):
        source, size, side, channels = MODELS[name]
        batch = {"pixel_values": torch.randn(size, channels, side, side),
                 "labels": torch.randint(10, (size,))}  # fmt: skip
        rounds = arguments.rounds * (20 if size > 8 else 1)
        seconds = seconds_of(source, batch, rounds)
        ratios = {kind: seconds[kind] / seconds["adamw"] for kind in KINDS}
        models[name] = {"batch": size, "rounds": rounds, "seconds": seconds, "over_adamw": ratios}
    print(json.dumps({"seed": arguments.seed, "models": models, **surroundings()}, indent=2))


if __name__ == "__main__":
    main()
