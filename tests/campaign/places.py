"""Places that cannot be written, or hold little: real file systems where root can mount them."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20
NOBODY = 65534


@dataclass
class Place:
    """A folder to run in, what is done in the child before, and what is unmounted afterwards."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    mounted: list[Path] = field(default_factory=list)

    def mount(self, at: Path, options: str) -> None:
        """Mount an empty file system in memory."""
        at.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(at)], check=True)
        self.mounted.append(at)

    def give_back(self) -> None:
        """Unmount what was mounted."""
        for at in reversed(self.mounted):
            subprocess.run(["umount", str(at)], check=True)


Prepare = Callable[[Place, random.Random], None]


def _file_size(place: Place, chance: random.Random) -> None:
    size = chance.choice((2000, 20_000, 60_000))
    place.options = {"limits": {resource.RLIMIT_FSIZE: size},
                     "before": lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN)}  # fmt: skip


def _descriptors(place: Place, chance: random.Random) -> None:
    place.options = {"limits": {resource.RLIMIT_NOFILE: chance.choice((7, 9, 12))}}


def _memory(place: Place, chance: random.Random) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    more = chance.choice((1, 4, 16, 48, 96))
    place.options = {"limits": {resource.RLIMIT_AS: used + more * MIB}}


def _not_a_folder(place: Place, chance: random.Random) -> None:
    (place.folder / "new").write_text("mine")


def _full_disk(place: Place, chance: random.Random) -> None:
    place.mount(place.folder, f"size={chance.choice((4, 16, 64, 128, 256, 400))}k")


def _no_inodes(place: Place, chance: random.Random) -> None:
    place.mount(place.folder, f"nr_inodes={chance.choice((2, 4, 6, 9))}")


def _full_everywhere(place: Place, chance: random.Random) -> None:
    _full_disk(place, chance)
    place.options = {"before": lambda: os.environ.update(HOME=str(place.folder))}


def _read_only(place: Place, chance: random.Random) -> None:
    place.mount(place.folder, "ro")


def _mount_point(place: Place, chance: random.Random) -> None:
    """A folder that is there, and empty, and that nothing can be renamed to."""
    place.mount(place.folder / "new", "size=1m")


def _no_right(place: Place, chance: random.Random) -> None:
    def become_nobody() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    place.options = {"before": become_nobody}


LIMITS: dict[str, Prepare] = {
    "file size": _file_size, "descriptors": _descriptors, "memory": _memory,
    "a file in the way": _not_a_folder,
}  # fmt: skip
# These need root.
MOUNTED: dict[str, Prepare] = {
    "full disk": _full_disk, "no inodes": _no_inodes, "full everywhere": _full_everywhere,
    "read-only": _read_only, "a mount point": _mount_point, "no right": _no_right,
}  # fmt: skip


def places() -> dict[str, Prepare]:
    """What this user can make."""
    return LIMITS | (MOUNTED if os.geteuid() == 0 else {})
