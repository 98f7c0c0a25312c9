"""Batches of mutations in forked processes: what one of them breaks does not end the run."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

from .running import Tally, Whole, alarms, mutate_and_read

BATCH = 500
_MORE = 2**33  # bytes of address space that a batch may take beside what it begins with


def run_forked(
    whole: list[Whole], numbers: range, seed: int, until: float,
    report: Callable[[int, Tally], None],
) -> Tally:  # fmt: skip
    """The mutations of these numbers, or as many as there is time for.

    `report` is told of every batch: the number after its last one, and what came of it.

    A mutation that kills its process is counted as `killed`; the next process goes on behind it.
    """
    total, number = Tally(), numbers.start
    while number < numbers.stop and time.monotonic() < until:
        last = min(number + BATCH, numbers.stop)
        tally, after = _batch(whole, number, last, seed)
        if after < last:  # it died of the mutation `after`
            target, data, _ = whole[after % len(whole)]
            target.file.write_bytes(data)
            tally.add(target.name, "killed", {"number": after})
            after += 1
        number = after
        total.merge(tally)
        report(number, tally)
    return total


def _batch(whole: list[Whole], first: int, last: int, seed: int) -> tuple[Tally, int]:
    """What came of the mutations from `first` to before the number that is given back."""
    source, sink = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(source)
        _child(whole, range(first, last), seed, sink)
    os.close(sink)
    tally, after = Tally(), first
    with os.fdopen(source) as stream:
        for line in stream:
            for name, outcome, detail in json.loads(line):
                tally.add(name, outcome, detail)
            after += 1
    os.waitpid(pid, 0)
    return tally, after


def _child(whole: list[Whole], numbers: range, seed: int, sink: int) -> None:
    """The child: never returns. It tells what came of every mutation in a line of its own."""
    code = 1
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MORE, used + _MORE))
        with alarms():
            for number in numbers:
                tally = Tally()
                mutate_and_read(tally, whole, number, seed)
                ((name, counts),) = tally.counts.items()
                bad = tally.bad[0] if tally.bad else None
                os.write(sink, (json.dumps([[name, next(iter(counts)), bad]]) + "\n").encode())
        code = 0
    finally:
        os._exit(code)
