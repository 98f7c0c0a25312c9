"""Time commands that need no network beside a bare `import torch`, in turns, as JSON.

    python benchmarks/start_up.py

Processor seconds of fresh processes, from their start to their end; medians of rounds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from statistics import median

from surroundings import surroundings

COMMANDS = {
    "import torch": ["-c", "import torch"],
    "--help": ["-m", "slt_compress", "--help"],
    "recipes": ["-m", "slt_compress", "recipes"],
    "recipes show": ["-m", "slt_compress", "recipes", "show", "smoke"],
    "a word for a number": ["-m", "slt_compress", "search", "lenet-300-100", "--lr", "high"],
    "a wrong value": ["-m", "slt_compress", "search", "lenet-300-100", "--target-sparsity", "90"],
    "report of nothing": ["-m", "slt_compress", "report", "no/such/folder"],
}


def seconds(arguments: list[str]) -> float:
    """Processor seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Parse, time in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):  # the first one warms the file cache
        for name, arguments in COMMANDS.items():
            taken[name].append(seconds(arguments))
    medians = {name: median(times[1:]) for name, times in taken.items()}
    bare = medians["import torch"]
    print(json.dumps({
        "rounds": rounds, "seconds": medians,
        "over_import_torch": {name: value / bare for name, value in medians.items()},
        **surroundings(),
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
