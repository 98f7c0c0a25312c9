"""Time `slt-compress plan` of ViT-base from its config, and the imports that it needs, as JSON.

    python benchmarks/planning.py

Every figure is the median over fresh, interleaved processes: wall and processor seconds of the
plan, of `import torch, transformers`, and of these imports with the class of the model. Compiled
modules are kept between processes, as in an installed package.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from surroundings import surroundings
from transformers import ViTConfig

BARE = "import torch, transformers"
KEPT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def run(arguments: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one fresh Python."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True, env=KEPT)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, used


def main() -> None:
    """Parse, write the config, time the commands, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        config = ViTConfig(architectures=["ViTForImageClassification"]).to_dict()
        (Path(folder) / "config.json").write_text(json.dumps(config))
        commands = {
            "plan": ["-m", "slt_compress", "plan", folder, "--json"],
            "libraries": ["-c", BARE],
            "libraries and model class": ["-c", f"{BARE}; transformers.ViTForImageClassification"],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds + 1):  # the first one warms the file cache
            for name, arguments in commands.items():
                taken[name].append(run(arguments))
    seconds = {
        name: {
            "wall": round(median(wall for wall, _ in times[1:]), 2),
            "processor": round(median(used for _, used in times[1:]), 2),
        }
        for name, times in taken.items()
    }
    ratios = {
        name: round(seconds["plan"]["processor"] / seconds[name]["processor"], 2)
        for name in seconds
        if name != "plan"
    }
    print(json.dumps({"rounds": rounds, "seconds": seconds, "plan_over": ratios, **surroundings()},
                     indent=2))  # fmt: skip


if __name__ == "__main__":
    main()
