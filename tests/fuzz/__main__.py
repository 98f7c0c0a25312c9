"""`python -m tests.fuzz --count 1000 --seed 0`: mutate every file that is read; exit 1 if bad."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.forked import run_forked
from fuzz.running import Tally, opened
from fuzz.targets import targets

ROOT = Path(__file__).parents[2]  # left out of the traces in a summary
BAD = ("wrong", "traceback", "hang", "slow", "large", "killed")
_LIBRARIES = ("torch", "transformers", "timm", "safetensors", "pydantic", "pyyaml")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many mutations")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after this time")
    parser.add_argument("--only", default="", help="only targets whose name holds this text")
    parser.add_argument("--out", type=Path, default=None, help="write a JSON summary here")
    parser.add_argument("--lines", type=Path, default=None, help="write a JSON line per batch here")
    asked = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole = opened(t for t in targets(Path(folder)) if asked.only in t.name)

        def report(number: int, tally: Tally) -> None:
            if asked.lines is not None:
                record = {"number": number, "outcomes": tally.total, "bad": tally.bad}
                with asked.lines.open("a") as stream:
                    stream.write(json.dumps(record) + "\n")

        until = time.monotonic() + asked.seconds
        tally = run_forked(
            whole, range(asked.first, asked.first + asked.count), asked.seed, until, report
        )
    total = tally.total
    summary = {
        "campaign": "mutations",
        "seed": asked.seed,
        "first": asked.first,
        "run": total.total(),
        "bad": sum(total[outcome] for outcome in BAD),
        "outcomes": dict(sorted(total.items())),
        "targets": {name: dict(sorted(c.items())) for name, c in sorted(tally.counts.items())},
        "examples": tally.bad,
        "seconds": round(time.monotonic() - started, 1),
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    text = json.dumps(summary, indent=2, ensure_ascii=True).replace(f"{ROOT}/", "") + "\n"
    if asked.out is not None:
        asked.out.write_text(text)
    print(text, end="")
    return int(summary["bad"] > 0)


if __name__ == "__main__":
    sys.exit(main())
