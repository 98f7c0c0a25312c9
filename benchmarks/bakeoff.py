"""Compare methods on one task with the same steps, seeds and data, and print rows as JSON.

    python benchmarks/bakeoff.py mnist --data PATH/TO/mnist -o FOLDER > benchmarks/results/….json

The seeds run side by side, each in its own process (`--jobs`) with one thread. FOLDER keeps the
finished rows, so an interrupted run continues where it stopped. Data and checkpoints are not part
of the repository: the table below shows what each case needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEARNED = ("relaxed", "hard-concrete", "gumbel", "edge-popup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A comparison; `keys` override those of the recipe."""

    source: str
    recipe: str
    methods: Sequence[str]
    sparsities: Sequence[float]
    seeds: int
    keys: Mapping[str, Any]


# As its authors run it: the same share of every layer at once, and SGD with momentum.
PUBLISHED = {
    "scope": "layer",
    "training": {
        "optimizer": "sgd", "lr": 0.1, "lr_schedule": "cosine", "weight_decay": 1e-4,
        "start_density": 0.01, "ema": 0.0,  # below every target: no schedule
    },
}  # fmt: skip
# Rows compete within their layer, weighed by the energy of the loss gradient.
SWAPS = {"name": "swaps", "exchange": "layer", "error": "loss"}
CASES: Mapping[str, Case] = {
    "mnist": Case(
        source="lenet-300-100", recipe="mnist-lenet", methods=("relaxed", "edge-popup"),
        sparsities=(0.5, 0.8, 0.9, 0.95, 0.98), seeds=3,
        keys={"training": {"epochs": 3, "optimizer": None}},
    ),
    "mnist-soft": Case(  # gates that stay soft to the end; edge-popup is that of `mnist`
        source="lenet-300-100", recipe="mnist-lenet", methods=("relaxed",),
        sparsities=(0.8, 0.9, 0.95, 0.98), seeds=3,
        keys={"training": {"epochs": 3, "optimizer": None, "hard": 0.0},
              "evaluation": {"controls": "none"}},
    ),
    "mnist-published": Case(
        source="lenet-300-100", recipe="mnist-lenet", methods=("edge-popup",),
        sparsities=(0.5, 0.8, 0.9, 0.95, 0.98), seeds=3,
        keys={**PUBLISHED, "training": {**PUBLISHED["training"], "epochs": 3}},
    ),
    "cifar-pretrained": Case(
        source="resnet20-cifar", recipe="distill", methods=LEARNED[:3],
        sparsities=(0.9,), seeds=1, keys={"training": {"epochs": 2}},
    ),
    "vit-digits": Case(
        source="timm:test_vit", recipe="vit-digits", methods=("relaxed", "edge-popup"),
        sparsities=(0.9,), seeds=3, keys={},
    ),
    "vit-digits-adam": Case(
        source="timm:test_vit", recipe="vit-digits", methods=("edge-popup",),
        sparsities=(0.9,), seeds=3, keys={"training": {"optimizer": "adam", "lr": 0.01}},
    ),
    "vit-digits-published": Case(
        source="timm:test_vit", recipe="vit-digits", methods=("edge-popup",),
        sparsities=(0.9,), seeds=3, keys=PUBLISHED,
    ),
    "llama-50": Case(
        source="(--source)", recipe="llm-distill", methods=("relaxed", "magnitude", "wanda"),
        sparsities=(0.5,), seeds=1, keys={},
    ),
    "llama-2of4": Case(
        source="(--source)", recipe="llm-distill", methods=("relaxed", "magnitude", "wanda"),
        sparsities=(0.5,), seeds=1, keys={"pattern": "2:4"},
    ),
    "llama-50-swaps": Case(
        source="(--source)", recipe="llm-distill", methods=("wanda", "swaps"),
        sparsities=(0.5,), seeds=1, keys={"method": SWAPS},
    ),
    "llama-2of4-swaps": Case(
        source="(--source)", recipe="llm-distill", methods=("wanda", "swaps"),
        sparsities=(0.5,), seeds=1, keys={"method": SWAPS, "pattern": "2:4"},
    ),
    "llama-2of4-permuted": Case(
        source="(--source)", recipe="llm-distill", methods=("wanda", "swaps"),
        sparsities=(0.5,), seeds=1, keys={"method": SWAPS, "pattern": "2:4", "permute": True},
    ),
    "llama-2of4-permuted-relaxed": Case(
        source="(--source)", recipe="llm-distill", methods=("relaxed",),
        sparsities=(0.5,), seeds=1, keys={"pattern": "2:4", "permute": True},
    ),
    "llama-50-prior": Case(
        source="(--source)", recipe="llm-distill", methods=("relaxed",), sparsities=(0.5,), seeds=1,
        keys={"method": {"name": "relaxed", "prior": "swaps"}, "training": {"polish": True}},
    ),
    "mnist-adam": Case(
        source="lenet-300-100", recipe="mnist-lenet", methods=LEARNED,
        sparsities=(0.5, 0.8, 0.9, 0.95, 0.98), seeds=3, keys={"training": {"epochs": 3}},
    ),
    "cifar-random": Case(
        source="resnet20-cifar", recipe="cifar-random", methods=("relaxed", "edge-popup"),
        sparsities=(0.5, 0.9), seeds=1, keys={"training": {"epochs": 2}},
    ),
    "cifar-random-published": Case(
        source="resnet20-cifar", recipe="cifar-random", methods=("edge-popup",),
        sparsities=(0.5, 0.9), seeds=1,
        keys={**PUBLISHED, "training": {**PUBLISHED["training"], "epochs": 2}},
    ),
}  # fmt: skip


def main() -> None:
    """Parse, run the seeds, print all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", required=True, help="data set specification, such as digits")
    parser.add_argument("--source", help="folder of a checkpoint, if the case needs one")
    parser.add_argument("--weights", help="safetensors file of a pretrained net")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder for tickets and rows")
    parser.add_argument("--jobs", type=int, default=2, help="number of seeds to run at a time")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    if arguments.seed is not None:
        run_seed(case, arguments)
        return
    side_by_side(case, arguments.jobs)
    print(json.dumps(collected(arguments.case, arguments.out), indent=2))


def run_seed(case: Case, arguments: argparse.Namespace) -> None:
    """All methods and sparsities with one seed."""
    import torch

    import slt_compress
    from slt_compress.searching.overrides import merged
    from slt_compress.searching.recipes import parse_recipe, read_recipe

    torch.set_num_threads(1)
    over = {"dataset": arguments.data, "training": {"seed": arguments.seed}}
    if arguments.weights:
        over["weights"] = arguments.weights
    content = merged(merged(read_recipe(case.recipe), case.keys), over)
    for method in case.methods:
        slt_compress.compare(
        arguments.source or case.source, methods=[method], sparsities=case.sparsities,
        seeds=1, recipe=parse_recipe(content), out=arguments.out / f"{method}-{arguments.seed}",
        on_row=lambda row, number, total: print(
            f"seed {arguments.seed} [{number}/{total}] {row.method} {row.sparsity}: "
            f"{row.hard or row.error} {row.seconds:.0f} s", file=sys.stderr, flush=True,
        ),
    )  # fmt: skip


def side_by_side(case: Case, jobs: int) -> None:
    """Run every seed in its own process, at most `jobs` at a time."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    waiting = [[sys.executable, *sys.argv, "--seed", str(seed)] for seed in range(case.seeds)]
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(subprocess.Popen(waiting.pop(0), env=environment))
        if running.pop(0).wait():
            raise SystemExit("a seed failed; run the same command again to continue")


def collected(name: str, folder: Path) -> dict[str, Any]:
    """The rows of all seeds, with the soft metrics and the dense one from the tickets."""
    from surroundings import surroundings

    from slt_compress.searching.comparing import Comparison, Row

    rows, recipe = [], {}
    for file in sorted(folder.glob("*/compare.json")):
        content = json.loads(file.read_text())
        recipe = content["recipe"]
        rows += [Row(**row) for row in content["rows"]]
    summary = Comparison(folder=folder, rows=tuple(rows)).summary()
    recipe = {**recipe, "dataset": Path(str(recipe.get("dataset"))).name, "weights": None}
    return {
        "case": name,
        "rows": [described(row.to_dict()) for row in rows],
        "summary": summary,
        "recipe": recipe,
        **surroundings(),
    }


def described(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the metrics of its ticket, without its path on this machine."""
    path = row.pop("ticket")
    if path is None:
        return row
    manifest = json.loads((Path(path) / "ticket.json").read_text())
    metrics = {key: manifest["metrics"][key] for key in ("dense", "soft")}
    return {
        **row,
        **metrics,
        "counts": manifest["counts"],
        "method_options": manifest["recipe"]["method"],
    }


if __name__ == "__main__":
    main()
