"""Time one search from Python, with torch imported first, beside the command line, as JSON.

    python benchmarks/from_python.py --busy 2

LeNet-300-100 on digits, in fresh processes that take turns, with as many others that do nothing but
count (`--busy`). Seconds are the wall time of the search alone, without imports; the last kind is
Python with as many threads as torch starts by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from statistics import median

from surroundings import surroundings

SEARCH = """
import os, sys, time
kind, folder, steps = sys.argv[1:]
if kind == "command line":  # what its `main` does before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
import slt_compress
import slt_compress.searching.running
from slt_compress.searching import threads
from slt_compress.searching.recipes import parse_recipe
if kind == "python, unbounded":
    threads.threads_for = lambda module, batch_size: torch.get_num_threads()
recipe = parse_recipe({
    "init": "random", "dataset": "digits", "training": {"steps": int(steps)},
    "evaluation": {"controls": "none"},
})
started = time.monotonic()
slt_compress.search("lenet-300-100", recipe=recipe, out=folder + "/ticket")
print(time.monotonic() - started)
"""
KINDS = ("command line", "python", "python, unbounded")


def seconds(kind: str, steps: int) -> float:
    """Wall time of a search in a process of its own."""
    own = {key: value for key, value in os.environ.items() if "NUM_THREADS" not in key}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", SEARCH, kind, folder, str(steps)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True, env=own,
        )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    """Parse, keep the cores busy, time in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default=";".join(KINDS), help="separated by semicolons")
    arguments = parser.parse_args()
    kinds = [kind for kind in KINDS if kind in arguments.kinds.split(";")]
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.busy)
    ]
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    try:
        for _ in range(arguments.rounds):
            for kind in kinds:
                taken[kind].append(seconds(kind, arguments.steps))
    finally:
        for other in others:
            other.kill()
    medians = {kind: median(each) for kind, each in taken.items()}
    print(json.dumps({
        "busy": arguments.busy, "steps": arguments.steps, "rounds": arguments.rounds,
        "load": os.getloadavg()[0], "seconds": medians,
        "over_command_line": {k: v / medians[kinds[0]] for k, v in medians.items()},
        **surroundings(),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
