"""Seconds of a round trip as JSON: export a ViT-base ticket to a sparse format, load, verify.

    python benchmarks/roundtrip.py [--format sparse-csr]

The origin is a ViT-base with random weights in its own folder. The ticket keeps 10 % of every
linear weight at random, and has a probe. Each step runs in a fresh process. The figures are its
processor seconds after the imports, which are timed separately. The time of a plain read of the
files that it reads, and of a plain write of those that it writes, is subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from surroundings import surroundings
from transformers import ViTConfig, ViTForImageClassification

from slt_compress.anatomy.states import environment
from slt_compress.runtime.opening import open_path
from slt_compress.searching.recipes import Recipe
from slt_compress.storage.probe import Probe
from slt_compress.tickets import TicketContent, read_ticket, write_ticket
from slt_compress.tickets.importing import import_checkpoint

STEP = """
import json, sys, time
started = time.process_time()
import torch, transformers, slt_compress
transformers.ViTForImageClassification
from slt_compress.evidence import verifying
from slt_compress.exporting import folders, shrunk
from slt_compress.runtime import opening
imported = time.process_time()
wall = time.perf_counter()
step, *arguments = sys.argv[1:]
if step == "export":
    slt_compress.export(arguments[0], format=arguments[1], out=arguments[2])
elif step == "load":
    slt_compress.load(arguments[0])
else:
    assert slt_compress.verify(arguments[0], in_process=True).ok
print(json.dumps({"import": imported - started, "process": time.process_time() - imported,
                  "wall": time.perf_counter() - wall}))
"""


def make_ticket(folder: Path) -> Path:
    """The origin and the ticket, whose probe is two images."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = ViTForImageClassification(ViTConfig(num_labels=1000)).eval()
    model.save_pretrained(folder / "plain")
    from safetensors.torch import load_file

    spelled = {}
    for key, tensor in load_file(folder / "plain" / "model.safetensors").items():
        if tensor.dim() == 2 and key.endswith("weight") and "classifier" not in key:
            spelled[f"{key}_orig"] = tensor
            spelled[f"{key}_mask"] = torch.rand(tensor.shape) < 0.1
        else:
            spelled[key] = tensor
    (folder / "spelled").mkdir()
    save_file(spelled, folder / "spelled" / "model.safetensors")
    (folder / "spelled" / "config.json").write_bytes(
        (folder / "plain" / "config.json").read_bytes()
    )
    bare = import_checkpoint(folder / "spelled", folder / "bare", recipe=Recipe().to_dict())
    with torch.inference_mode():
        pixels = torch.randn(2, 3, 224, 224)
        opened = open_path(bare.path)
        logits = opened.module(pixels).logits.clone()
    content = TicketContent(
        origin=bare.origin, masks=bare.masks, gains={}, buffers={}, stored={},
        budget=bare.budget, recipe=bare.recipe, metrics=bare.metrics, controls=bare.controls,
        skipped=bare.skipped, weights_hash=bare.weights_hash, parameters=bare.counts.parameters,
        probe=Probe(inputs={"pixel_values": pixels}, logits=logits), card="",
        sites={name: site.facts for name, site in bare.sites.items()},
        extra=replace(bare.extra, environment=environment(opened.module)),
    )  # fmt: skip
    write_ticket(folder / "ticket", content)
    return folder / "ticket"


def plain_io(reads: list[Path], writes: list[Path], scratch: Path) -> float:
    """Processor seconds of reading some files and writing others, with nothing in between."""
    content = [file.read_bytes() for folder in writes for file in files(folder)]
    started = time.process_time()
    for folder in reads:
        for file in files(folder):
            file.read_bytes()
    for number, data in enumerate(content):
        (scratch / str(number)).write_bytes(data)
    return time.process_time() - started


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]


def run(*arguments: str | Path) -> dict[str, float]:
    """Run one step in a fresh process, and return its figures."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STEP, *map(str, arguments)],
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    """Parse, make the ticket, run the steps interleaved, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", default="sparse-csr")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    taken: dict[str, list[dict[str, float]]] = {"export": [], "load": [], "verify": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ticket = make_ticket(folder)
        origin = Path(read_ticket(ticket).origin["source"])
        for number in range(given.rounds + 1):  # the first one warms the file cache
            out = folder / f"out-{number}"
            taken["export"].append(run("export", ticket, given.format, out))
            taken["load"].append(run("load", out))
            taken["verify"].append(run("verify", out))
        (folder / "scratch").mkdir()
        io = {
            "export": plain_io([ticket, origin], [out], folder / "scratch"),
            "load": plain_io([out], [], folder / "scratch"),
            "verify": plain_io([out, origin], [], folder / "scratch"),
        }
    steps: dict[str, Any] = {}
    for step, times in taken.items():
        middle = {key: median(each[key] for each in times[1:]) for key in times[0]}
        steps[step] = {
            **{key: round(value, 2) for key, value in middle.items()},
            "input_output": round(io[step], 2),
            "beyond": round(middle["process"] - io[step], 2),
        }
    beyond = round(sum(step["beyond"] for step in steps.values()), 2)
    content = {"format": given.format, "rounds": given.rounds, "seconds": steps}
    content["beyond_reading_and_writing"] = beyond
    print(json.dumps({**content, **surroundings()}, indent=2))


if __name__ == "__main__":
    main()
