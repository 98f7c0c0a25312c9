"""Limits on memory, files, descriptors and disks: one sentence, and no finished search is lost."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaign.commands import FINAL, Command, cleared, commands, is_whole
from campaign.forking import Ended, run
from campaign.loopback import Loopback
from campaign.places import Place, places

Record = dict[str, Any]
TRAINED = "trained"


def limits(root: Path, chance: random.Random, hub: Loopback) -> Iterator[Record]:
    """Every command in every place, in turn."""
    made = commands(root / "tools", hub)
    marker = root / TRAINED
    _mark_trained(marker)
    while True:
        for name, command in made.items():
            for kind, prepare in places().items():
                if marker.exists():
                    marker.rmdir()
                place = Place(root / "limited")
                place.folder.mkdir()
                try:
                    prepare(place, chance)
                    ended = run(place.folder, list(command.arguments), **place.options)
                    bad = [*_said(command, ended), *_kept(command, place.folder, ended, marker)]
                finally:
                    place.give_back()
                cleared(command, place.folder)
                yield {"command": name, "limit": kind, "code": ended.code,
                       "said": told(ended)[-200:], "bad": bad}  # fmt: skip


def _mark_trained(marker: Path) -> None:
    """Let every search leave a mark when its steps are over, so that a loss is noticed."""
    from slt_compress.searching.conclusion import Measuring

    conclude = Measuring.conclude
    marker.parent.chmod(0o777)  # some runs are of another user
    handle = os.open(marker.parent, os.O_RDONLY)

    def marked(*arguments: Any, **named: Any) -> Any:
        # beside the limits that are tested: no new descriptor stays, no space is taken
        if not marker.exists():
            os.mkdir(marker.name, dir_fd=handle)
        return conclude(*arguments, **named)

    Measuring.conclude = marked  # type: ignore[method-assign]


def told(ended: Ended) -> str:
    """What a child said, without its warnings."""
    lines = ended.err.splitlines()
    return "\n".join(line for line in lines if not line.startswith("warning: "))


def _said(command: Command, ended: Ended) -> list[str]:
    bad = [] if ended.is_clean else [f"not clean: {ended.err[-400:]}"]
    if ended.code < 0:
        bad.append(f"killed by {-ended.code}")
    in_rows = command.name == "compare" and "failed: " in ended.out
    one_line = len(told(ended).splitlines()) == 1
    if ended.code > 0 and not one_line and not in_rows:
        bad.append(f"not one line: {ended.err[-300:]}")
    return bad


def _kept(command: Command, folder: Path, ended: Ended, marker: Path) -> list[str]:
    """What is wrong with what is left."""
    from slt_compress.errors import SltError
    from slt_compress.runtime.opening import open_path

    final, bad = folder / FINAL, []
    if final.is_dir() and any(final.iterdir()) and not is_whole(command, folder):
        bad.append("what is left is not whole")
    rescued = re.search(r"saved to (\S+) instead", ended.err)
    if rescued:
        try:
            open_path(rescued[1])
        except (SltError, OSError) as error:
            bad.append(f"what was rescued is not whole: {error}")
    if command.name != "search" or ended.code == 0 or not marker.exists():
        return bad
    state = folder / f"{FINAL}.search" / "state.safetensors"
    nowhere = "no fallback folder could be written either" in ended.err
    return bad if rescued or state.exists() or nowhere else [*bad, "a finished search is lost"]
