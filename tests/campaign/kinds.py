"""The campaigns by name; each yields a record for every run: `bad` says what was wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign.doubling import writers
from campaign.interrupting import kills, signals
from campaign.limits import limits
from campaign.loopback import Loopback
from campaign.resuming import resumes
from campaign.tampering import tampering

KINDS: dict[str, Callable[[Path, random.Random, Loopback], Iterator[dict[str, Any]]]] = {
    "kills": kills, "resumes": resumes, "signals": signals, "writers": writers, "limits": limits,
    "tampering": tampering,
}  # fmt: skip
