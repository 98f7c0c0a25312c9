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
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from campaign.forking import preload
from campaign.kinds import KINDS
from campaign.loopback import start

ROOT = Path(__file__).parents[2]  # left out of the traces in a summary
_LIBRARIES = ("torch", "transformers", "timm", "safetensors", "huggingface-hub")


def run(kind: str, seed: int) -> Iterator[dict[str, Any]]:
    """The records of a campaign, without an end."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)  # some runs are of another user
        hub = start(root / "hub")
        os.environ |= {"HOME": str(root / "home"), "HF_HOME": str(root / "home" / "hf")}
        (root / "home").mkdir()  # where finished searches are rescued to
        try:
            preload()
            yield from KINDS[kind](root / "runs", random.Random(seed), hub)
        finally:
            hub.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--count", type=int, default=50, help="how many runs")
    parser.add_argument("--seconds", type=float, default=600.0, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and choices")
    parser.add_argument("--out", type=Path, default=None, help="write a JSON summary here")
    parser.add_argument("--lines", type=Path, default=None, help="write a JSON line per run here")
    asked = parser.parse_args()
    started, records = time.monotonic(), []
    for record in run(asked.kind, asked.seed):
        records.append(record)
        if asked.lines is not None:
            with asked.lines.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
        if len(records) >= asked.count or time.monotonic() - started > asked.seconds:
            break
    bad = [record for record in records if record["bad"]]
    counted = Counter(str(r.get("command") or r.get("format")) for r in records)
    summary = {
        "campaign": asked.kind, "seed": asked.seed, "run": len(records), "bad": len(bad),
        "ends": dict(sorted(Counter(_end(record) for record in records).items())),
        "by": dict(sorted(counted.items())), "examples": bad[:20],
        "seconds": round(time.monotonic() - started, 1),
        "versions": {name: version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
    }  # fmt: skip
    text = json.dumps(summary, indent=2).replace(f"{ROOT}/", "") + "\n"
    if asked.out is not None:
        asked.out.write_text(text)
    print(text, end="")
    return int(bool(bad))


def _end(record: dict[str, Any]) -> str:
    """How a run ended, for the counts of the summary."""
    if "finished" in record:
        return "killed, finished" if record["finished"] else "killed"
    return (
        f"code {record['code']}"
        if "code" in record
        else str(record.get("codes", record.get("end", "refused")))
    )


if __name__ == "__main__":
    sys.exit(main())
