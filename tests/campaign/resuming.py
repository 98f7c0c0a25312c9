"""Searches that are killed again and again, and go on from their progress."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaign.commands import litter
from campaign.forking import COMMON, LENET, Child, run
from campaign.loopback import Loopback

Record = dict[str, Any]


def resumes(root: Path, chance: random.Random, hub: Loopback) -> Iterator[Record]:
    """SIGKILL at a random moment of a search, again and again until it ends: the same bytes.

    One search trains all gates, the other goes block by block.
    """
    searches = {
        "search": ["search", *LENET, *COMMON, "--steps", "12", "--save-every", "0", "-o", "new"],
        "blocks": ["search", *LENET, *COMMON, "--objective", "reconstruct", "--save-every", "0",
                   "-o", "new"],
    }  # fmt: skip
    whole, times = {}, {}
    for name, arguments in searches.items():
        done = run(root / name, arguments)
        if done.code:
            raise SystemExit(f"{name} does not run: {done.err}")
        whole[name], times[name] = _digests(root / name / "new"), done.seconds
    while True:
        for name, arguments in searches.items():
            folder, moments, bad = root / "killed", [], []
            for _ in range(20):  # a search that is killed late enough every time goes on
                child = Child(folder, arguments)
                moments.append(chance.uniform(0, times[name]))
                time.sleep(moments[-1])
                child.send(signal.SIGKILL)
                if child.wait().code == 0 or chance.random() < 0.5:
                    break
            ended = run(folder, arguments)
            taken = "not empty" in ended.err  # it was killed after the ticket was there
            if ended.code and not taken:
                bad.append(f"the last run failed: {ended.err[-200:]}")
            elif _digests(folder / "new") != whole[name]:
                bad.append("another ticket")
            bad += [f"litter: {left}" for left in litter(folder, progress=True)]
            shutil.rmtree(folder)
            end = "another ticket" if bad else "the same bytes"
            yield {"command": name, "at": [round(at, 3) for at in moments], "end": end, "bad": bad}


def _digests(ticket: Path) -> dict[str, str]:
    """Hash of every file of a ticket but the one that holds the clock."""
    files = sorted(path for path in ticket.iterdir() if path.name != "run.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
