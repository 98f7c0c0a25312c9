"""`python -m tests.campaign KIND --count 200 --seconds 600`; exit 1 if a run was bad.

Kinds: kills, resumes, signals, writers, limits, tampering. Mutations of files have a command of
their own, `python -m tests.fuzz`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaign.forking import preload
from campaign.kinds import KINDS

_LIBRARIES = ("torch", "transformers", "timm", "safetensors", "huggingface-hub")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--count", type=int, default=50, help="how many runs")
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and choices")
    parser.add_argument("--out", type=Path, default=None, help="write a JSON summary here")
    asked = parser.parse_args()
    preload()
    started, records = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = folder  # where finished searches are rescued to
        for record in KINDS[asked.kind](Path(folder) / "runs", random.Random(asked.seed)):
            records.append(record)
            if len(records) >= asked.count or time.monotonic() - started > asked.seconds:
                break
    bad = [record for record in records if record["bad"]]
    counted = Counter(str(r.get("command") or r.get("format")) for r in records)
    summary = {
        "campaign": asked.kind, "seed": asked.seed, "run": len(records), "bad": len(bad),
        "by": dict(sorted(counted.items())), "examples": bad[:20],
        "seconds": round(time.monotonic() - started, 1),
        "versions": {name: version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
    }  # fmt: skip
    text = json.dumps(summary, indent=2) + "\n"
    if asked.out is not None:
        asked.out.write_text(text)
    print(text, end="")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
