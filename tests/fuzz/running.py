"""Running: mutate, read, and count what came of it."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from slt_compress.errors import SltError
from slt_compress.storage.memory import is_low_memory

from .target import QUICK, Target

# Seconds of CPU, MiB, seconds of CPU: on the wall clock, a busy machine looks like a hang.
SLOW, LARGE, HANG = 5.0, 100, 30.0
STILL = 300.0  # seconds on the wall clock, for a read that waits and uses no CPU
_MARGIN = 3  # bad ones of a kind that are kept in full


@dataclass
class Tally:
    """How many mutations came to which end, by target; and the bad ones."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    bad: list[dict[str, Any]] = field(default_factory=list)

    def add(self, target: str, outcome: str, detail: dict[str, Any] | None = None) -> None:
        self.counts.setdefault(target, Counter())[outcome] += 1
        known = sum(e["target"] == target and e["outcome"] == outcome for e in self.bad)
        if detail is not None and known < _MARGIN:
            self.bad.append({"target": target, "outcome": outcome, **detail})

    def merge(self, other: Tally) -> None:
        """Add what another one counted."""
        for name, counts in other.counts.items():
            self.counts.setdefault(name, Counter()).update(counts)
        self.bad += other.bad[: max(0, 60 - len(self.bad))]

    @property
    def total(self) -> Counter[str]:
        return sum(self.counts.values(), Counter())


class _Hang(BaseException):
    pass


Whole = tuple[Target, bytes, Any]


def _alarm(signum: int, frame: FrameType | None) -> None:
    raise _Hang


@contextlib.contextmanager
def alarms() -> Iterator[None]:
    """What ends a mutation that hangs, be it busy or waiting; the handlers of before afterwards."""
    kinds = (signal.SIGPROF, signal.SIGALRM)
    before = [signal.signal(kind, _alarm) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def _set_alarms(busy: float, still: float) -> None:
    """Raise `_Hang` after so many seconds of CPU, or on the wall clock; 0 takes an alarm away."""
    signal.setitimer(signal.ITIMER_PROF, busy)
    signal.setitimer(signal.ITIMER_REAL, still)


def run(targets: Iterable[Target], count: int, seed: int, until: float | None = None) -> Tally:
    """`count` mutations in turn over all targets, or as many as there is time for.

    Outcomes: `refused` (one sentence), `same` (what is read is what it was), `opened` (where what
    may be read is not compared), and the bad ones `wrong`, `traceback`, `hang`, `slow`, `large`.
    """
    tally, whole = Tally(), opened(targets)
    with alarms():
        for number in range(count):
            if until is not None and time.monotonic() > until:
                break
            mutate_and_read(tally, whole, number, seed)
    return tally


def opened(targets: Iterable[Target]) -> list[Whole]:
    """Every target with its bytes, and what is read of it."""
    whole = [(target, target.file.read_bytes(), target.read()) for target in targets]
    return [entry for turn in range(QUICK) for entry in whole if turn < entry[0].share]


def mutate_and_read(tally: Tally, whole: list[Whole], number: int, seed: int) -> None:
    """The mutation of a number, of the target whose turn it is; its file is whole afterwards."""
    target, data, wanted = whole[number % len(whole)]
    target.file.write_bytes(target.mutate(data, random.Random(f"{seed}/{number}")))
    try:
        _one(tally, target, wanted, number)
    finally:
        target.file.write_bytes(data)


def _one(tally: Tally, target: Target, wanted: Any, number: int) -> None:
    memory, started = _peak_from_now(), time.process_time()
    detail: dict[str, Any] | None = None
    _set_alarms(HANG, STILL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read = target.read()
        outcome = "opened" if wanted is None else "same" if read == wanted else "wrong"
        detail = {"number": number} if outcome == "wrong" else None
    except SltError as error:
        outcome = "refused" if "\n" not in str(error) else "traceback"
        if is_low_memory(error):  # there was enough: it asked for more than there is
            outcome = "large"
        detail = None if outcome == "refused" else {"number": number, "error": str(error)[-300:]}
    except _Hang:
        outcome, detail = "hang", {"number": number}
    except (Exception, SystemExit) as error:
        lines = traceback.format_exception(error)
        outcome, detail = "traceback", {"number": number, "error": "".join(lines[-3:])[-700:]}
    finally:
        _set_alarms(0, 0)
    seconds, grown = time.process_time() - started, _peak() - memory
    if outcome in ("refused", "same", "opened") and seconds > SLOW:
        outcome, detail = "slow", {"number": number, "seconds": round(seconds, 1)}
    elif outcome == "refused" and grown > LARGE:
        outcome, detail = "large", {"number": number, "MiB": grown}
    tally.add(target.name, outcome, detail)


def _peak_from_now() -> int:
    """Forget the peak memory of the process so far, where the system can; the peak, in MiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Peak memory of the process, in MiB."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
