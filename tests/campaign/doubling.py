"""Two commands that write to one place at once."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaign.commands import FINAL, Command, cleared, commands, is_whole, litter, pushed
from campaign.forking import Child, Ended
from campaign.limits import told
from campaign.loopback import Loopback

Record = dict[str, Any]


def writers(root: Path, chance: random.Random, hub: Loopback) -> Iterator[Record]:
    """Two of a kind; one that is refused says so in a sentence, and no work of either is lost."""
    made = commands(root / "tools", hub)
    search = made["search"]
    free = Command("search without -o", search.arguments[:-2])
    apart = Command("push from two folders", made["push"].arguments, hub)
    while True:
        for command in (*made.values(), free, apart):
            folder = root / "shared"
            ends = _both(command, folder, chance, apart=command is apart)
            bad = [f"not clean: {end.err[-300:]}" for end in ends if not end.is_clean]
            if not any(end.code == 0 for end in ends):
                bad.append(f"neither finished: {ends[0].err[-150:]} / {ends[1].err[-150:]}")
            bad += [f"no sentence: {end.err[-300:]}" for end in ends if end.code and not
                    told(end).startswith("error: ")]  # fmt: skip
            bad += _left(command, folder, ends, both=command is free)
            bad += [f"litter: {name}" for name in litter(folder, progress=True)]
            cleared(command, folder)
            yield {"command": command.name, "codes": [end.code for end in ends], "bad": bad}


def _both(command: Command, folder: Path, chance: random.Random, *, apart: bool) -> list[Ended]:
    """Both ends; with `apart` the second one writes to a folder of its own."""
    second = [("other" if apart and entry == FINAL else entry) for entry in command.arguments]
    first = Child(folder, list(command.arguments))
    time.sleep(chance.choice((0.0, 0.0, 0.02, 0.05, 0.3)))
    other = Child(folder, second)
    return [first.wait(), other.wait()]


def _left(command: Command, folder: Path, ends: list[Ended], *, both: bool) -> list[str]:
    """What is wrong with what two commands left."""
    if both:
        tickets = [path for path in (folder / "tickets").iterdir() if path.name[0] != "."]
        done = sum(end.code == 0 for end in ends)
        return [] if len(tickets) == done == 2 else [f"{len(tickets)} tickets of {done} searches"]
    bad = [] if is_whole(command, folder) else ["what is left is not whole"]
    if command.name == "compare":
        rows = json.loads((folder / FINAL / "compare.json").read_text())["rows"]
        bad += ["a row is lost"] * (len(rows) != 2 or any(row.get("error") for row in rows))
    if command.hub is not None and not command.hub.repository.exists():
        bad.append("nothing was pushed")
    return bad + pushed(command, folder)
