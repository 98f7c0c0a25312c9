"""SIGKILL, SIGINT and SIGTERM at random moments, and what is left afterwards."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaign.commands import Command, cleared, commands, exists, is_whole, litter, pushed
from campaign.forking import Child, Ended, run
from campaign.loopback import Loopback

Record = dict[str, Any]


def _timed(made: dict[str, Command], root: Path) -> dict[str, float]:
    """How long each command takes here, undisturbed; the median of three."""
    times = {}
    for name, command in made.items():
        runs = []
        for _ in range(3):
            runs.append(run(root / "timed", list(command.arguments)))
            bad = [*litter(root / "timed", progress=True), *pushed(command, root / "timed")]
            if runs[-1].code or bad or not is_whole(command, root / "timed"):
                raise SystemExit(f"{name} does not run: {runs[-1].err} {bad}")
            cleared(command, root / "timed")
        times[name] = sorted(done.seconds for done in runs)[1]
    return times


def kills(root: Path, chance: random.Random, hub: Loopback) -> Iterator[Record]:
    """SIGKILL at a random moment; the final name, a second run, and what that leaves."""
    made = commands(root / "tools", hub)
    times = _timed(made, root)
    while True:
        for command in made.values():
            folder = root / "killed"
            child = Child(folder, list(command.arguments))
            moment = chance.uniform(0, times[command.name] * 1.05)
            time.sleep(moment)
            child.send(signal.SIGKILL)
            ended = child.wait()
            finished = exists(command, folder)
            bad = ["half-written under its final name"] * (
                finished and not is_whole(command, folder)
            )
            bad += _again(command, folder, finished=finished)
            cleared(command, folder)
            yield {"command": command.name, "at": round(moment, 3), "finished": finished,
                   "killed": ended.code == -signal.SIGKILL, "bad": bad}  # fmt: skip


def _again(command: Command, folder: Path, *, finished: bool) -> list[str]:
    """What is wrong after the same command once more: it works, or says that there is a result."""
    again = run(folder, list(command.arguments))
    taken = finished and "not empty" in again.err and command.name not in ("compare", "push")
    bad = []
    if (again.code and not taken) or not is_whole(command, folder):
        bad.append(f"the second run failed: {again.err[-200:]}")
    if command.hub is not None and not command.hub.repository.exists():
        bad.append("nothing was pushed")
    bad += [f"litter: {name}" for name in litter(folder, progress=True)]
    return bad + pushed(command, folder)


def signals(root: Path, chance: random.Random, hub: Loopback) -> Iterator[Record]:
    """SIGINT or SIGTERM at a random moment, once or twice; one in ten while all is imported."""
    made = commands(root / "tools", hub)
    times = _timed(made, root)
    started = run(root / "fresh", ["--version"], fresh=True).seconds
    shutil.rmtree(root / "fresh")
    while True:
        for command in made.values():
            folder, fresh = root / "signalled", chance.random() < 0.1
            child = Child(folder, list(command.arguments), fresh=fresh)
            signum = chance.choice((signal.SIGINT, signal.SIGTERM))
            double = chance.random() < 0.5
            # in a fresh process: once Python is up, until long after torch is imported
            least, most = (started, 4.0) if fresh else (0.0, times[command.name])
            moment = chance.uniform(least, most)
            time.sleep(moment)
            child.send(signum)
            if double:
                time.sleep(chance.choice((0.0, 0.001, 0.01, 0.05)))
                child.send(signum)
            ended = child.wait()
            bad = _ended_badly(ended, 128 + signum)
            if exists(command, folder) and not is_whole(command, folder):
                bad.append("half-written under its final name")
            bad += [f"litter: {name}" for name in litter(folder, progress=False)]
            bad += pushed(command, folder)
            cleared(command, folder)
            yield {"command": command.name, "at": round(moment, 3), "double": double,
                   "fresh": fresh, "signal": int(signum), "code": ended.code,
                   "bad": bad}  # fmt: skip


def _ended_badly(ended: Ended, code: int) -> list[str]:
    if ended.code == 0:
        return [] if ended.is_clean else [f"not clean: {ended.err[-300:]}"]
    bad = []
    if ended.code != code:
        bad.append(f"code {ended.code} instead of {code}: {ended.err[-300:]}")
    lines = [line for line in ended.err.splitlines() if "interrupted" in line]
    if len(lines) != 1 or not ended.is_clean:
        bad.append(f"not one line: {ended.err[-300:]}")
    return bad
