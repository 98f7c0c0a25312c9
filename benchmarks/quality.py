"""Run one search of the table below and print its evidence as JSON.

    python benchmarks/quality.py mnist-lenet-90 --data PATH/TO/mnist > benchmarks/results/….json

With `--folder` an interrupted run continues where it stopped, and CPU seconds are those of all its
processes. Data and checkpoints are not part of the repository: MNIST and CIFAR-10 as parquet
folders with `train` and `test` splits, the ResNet-20 weights as a safetensors file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surroundings import surroundings

import slt_compress
from slt_compress.searching.overrides import merged
from slt_compress.searching.recipes import parse_recipe, read_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A search; `keys` override the recipe. With `first`, it is inside the ticket of those."""

    source: str
    recipe: str
    keys: Mapping[str, Any]
    first: Mapping[str, Any] | None = None


def _mnist(keys: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> Case:
    return Case(source="lenet-300-100", recipe="mnist-lenet", keys=keys, first=first)


def _cifar(recipe: str, **keys: Any) -> Case:
    return Case(source="resnet20-cifar", recipe=recipe, keys=keys)


CASES: Mapping[str, Case] = {
    "mnist-lenet-90": _mnist({"target_sparsity": 0.9}),
    "mnist-lenet-96": _mnist({"target_sparsity": 0.96}),
    "mnist-lenet-98": _mnist({"target_sparsity": 0.98}),
    "mnist-lenet-neuron-77": _mnist(
        {"target_sparsity": 0.77, "pattern": "neuron", "training": {"epochs": 6}}
    ),
    "mnist-lenet-neuron-77-gains": _mnist(
        {
            "target_sparsity": 0.77,
            "pattern": "neuron",
            "tuning": {"gains": "unit"},
            "training": {"epochs": 6, "hard": 0.5, "lr_schedule": "cosine"},
        }
    ),
    "mnist-lenet-neuron-77-inside-90": _mnist(
        {"target_sparsity": 0.9},
        first={"target_sparsity": 0.77, "pattern": "neuron", "training": {"epochs": 2}},
    ),
    "cifar-resnet20-50": _cifar("distill", target_sparsity=0.5),
    "cifar-resnet20-80": _cifar("cifar-resnet", target_sparsity=0.8, training={"epochs": 6}),
    "cifar-resnet20-90": _cifar("cifar-resnet", target_sparsity=0.9),
    **{
        f"cifar-resnet20-{name}-norms": _cifar(
            "cifar-resnet", **keys, tuning={"parameters": ["norms"]}
        )
        for name, keys in {
            "90": {"target_sparsity": 0.9},
            "80": {"target_sparsity": 0.8, "training": {"epochs": 6}},
            "2of4": {"target_sparsity": None, "pattern": "2:4", "training": {"epochs": 4}},
        }.items()
    },
    "cifar-resnet20-2of4": _cifar(
        "cifar-resnet", target_sparsity=None, pattern="2:4", training={"epochs": 4}
    ),
    "cifar-resnet20-90-swaps": _cifar(
        "cifar-resnet",
        target_sparsity=0.9,
        method={"name": "relaxed", "prior": "swaps"},
        training={"precision": "bf16", "polish": True},
    ),
}


def main() -> None:
    """Parse, search in a temporary folder, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", required=True, help="data set specification")
    parser.add_argument("--weights", help="safetensors file of a pretrained net")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the search here")
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    content = merged(
        read_recipe(case.recipe), {"dataset": arguments.data, "training": {"seed": arguments.seed}}
    )
    if arguments.weights:
        content = merged(content, {"weights": arguments.weights})
    started = time.monotonic()
    with ExitStack() as stack:
        folder = arguments.folder or stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder).mkdir(exist_ok=True)
        if case.first is not None:
            outer = _search(case.source, merged(content, case.first), Path(folder) / "outer")
            content = merged(content, {"inside": str(outer.path)})
        ticket = _search(case.source, merged(content, case.keys), Path(folder) / "ticket")
        report = slt_compress.report(ticket.path)
        verified = slt_compress.verify(ticket.path).ok
        cpu_seconds = round(_cpu_seconds(Path(folder)), 1)
    seconds = round(time.monotonic() - started, 1)
    result = {
        "case": arguments.case,
        "seed": arguments.seed,
        "sparsity": dict(report.sparsity),
        "metrics": dict(report.metrics),
        "controls": dict(report.controls),
        "layers": [dict(layer) for layer in report.layers],
        "empty_rows": _empty_rows(ticket.masks),
        "verified": verified,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "first": case.first,
        "recipe": {
            **report.recipe,
            "dataset": Path(arguments.data).name,
            "weights": None,
            "inside": None,
        },
        **surroundings(),
    }
    print(json.dumps(result, indent=2, sort_keys=True))


def _search(source: str, content: Mapping[str, Any], out: Path) -> slt_compress.Ticket:
    def on_step(step: Any) -> None:
        if step.index % 25 == 0:
            _cpu_seconds(out.parent)
        _show(step)

    return slt_compress.search(
        source, recipe=parse_recipe(content), out=out, on_step=on_step, save_every=60
    )


def _cpu_seconds(folder: Path) -> float:
    """Note those of this process; those of all processes so far."""
    (folder / f"{os.getpid()}.cpu").write_text(str(time.process_time()))
    return sum(float(file.read_text()) for file in folder.glob("*.cpu"))


def _empty_rows(masks: slt_compress.Masks) -> dict[str, int]:
    """Rows (first dimension) without a kept weight, which are the removed outputs."""
    return {name: int((~mask.flatten(1).any(1)).sum()) for name, mask in masks.items()}


def _show(step: Any) -> None:
    if step.index % 100 == 0 or step.index + 1 == step.total:
        print(f"{step.index + 1}/{step.total} loss {step.loss:.4f}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
