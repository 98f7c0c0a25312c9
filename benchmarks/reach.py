"""Time ViT-base at some sparsities beside onnxruntime and OpenVINO on one thread, as JSON.

    python benchmarks/reach.py --out benchmarks/results/reach-vit-base.json

All of them run in turn in one process, on the same images, on one thread, and are timed by the
processor seconds of the process, so that other programs on the machine do not count (they still
take a part of its caches). Weights are random and removed at random. Needs the extra `bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from runtime import thin_
from surroundings import surroundings

from slt_compress.artifacts.onnx_file import trace, write_onnx
from slt_compress.runtime.kernel_plan import PRECISIONS, KernelPlan, fit
from slt_compress.runtime.rivals import RIVALS, open_rival

Run = Callable[[], Any]


def sides(sparsity: float, rivals: bool, scratch: Path) -> tuple[Any, list[tuple[str, Any, Any]]]:
    """A thinned model, and each side as its name, what prepares it, and what runs a batch."""
    torch.manual_seed(0)
    module = timm.create_model("vit_base_patch16_224", pretrained=False).eval()
    module.requires_grad_(False)
    shapes = thin_(module, sparsity)
    plans = {name: fit(module, shapes, "sparse", {}, precision=name) for name in PRECISIONS}

    def turn_to(plan: KernelPlan | None) -> None:
        for other in plans.values():
            other.take_off()
        if plan is not None:
            plan.put_on()

    made = [("torch dense", partial(turn_to, None), module)]
    made += [(f"ours {name}", partial(turn_to, plan), module) for name, plan in plans.items()]
    if rivals:
        folder = scratch / f"{sparsity}"
        folder.mkdir()
        turn_to(None)
        images = {"images": torch.randn(2, 3, 224, 224)}
        axes = {"images": {0: "batch"}}
        program = trace(module, lambda m, inputs: m(inputs["images"]), images, axes)
        write_onnx(program, folder)
        for row in (row for name in RIVALS for row in RIVALS[name]):
            run, _ = open_rival(row, folder)
            made.append((row, partial(turn_to, None), lambda x, run=run: run({"images": x})))
    return module, made


def rows_of(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each sparsity and batch size."""
    with tempfile.TemporaryDirectory() as scratch:
        for sparsity in (float(value) for value in arguments.sparsities.split(",")):
            _, made = sides(sparsity, not arguments.alone, Path(scratch))
            for batch in (int(count) for count in arguments.batches.split(",")):
                yield {"sparsity": sparsity, **measured(made, batch, arguments.rounds)}


def measured(made: list[tuple[str, Run, Any]], batch: int, rounds: int) -> dict[str, Any]:
    """Processor seconds of every side, and its speed over dense torch, by round."""
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in made}
    answers = {}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, prepare, run in made if number % 2 else reversed(made):
                prepare()
                started = time.process_time()
                answers[name] = run(images)
                seconds[name].append(time.process_time() - started)
    kept = {name: values[1:] for name, values in seconds.items()}
    dense, wanted = kept["torch dense"], answers["torch dense"]
    return {
        "batch": batch,
        "rounds": rounds,
        "ms": {name: round(1000 * median(values), 1) for name, values in kept.items()},
        "over_dense": {
            name: round(median(d / s for d, s in zip(dense, values, strict=True)), 3)
            for name, values in kept.items()
        },
        "error": {
            name: float((found - wanted).abs().max() / wanted.abs().max())
            for name, found in answers.items()
        },
        "load": os.getloadavg()[0],
    }


def main() -> None:
    """Parse, measure, and write after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsities", default="0.9,0.8,0.95")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without the rivals")
    parser.add_argument("--out", type=Path, help="default: printed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for row in rows_of(arguments):
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.out is not None:
            facts = {"clock": "processor seconds of the process", "threads": 1}
            text = json.dumps({**facts, "rows": rows, **surroundings()}, indent=2)
            arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
