"""Threads: as many as help a search, whoever imported torch first.

torch starts a thread per core that the process may use. Between two short operations they wait by
spinning, so where other programs run too, or a container may use less time than its cores have, a
small search takes ten times as long. How long they spin is read from the environment when torch is
imported, which may be before this package is. The number depends on nothing but the network and
the machine's limits: never on its load, or the same command would not give the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import torch
from torch import nn

# Multiplications of a forward pass below which a second thread gains less than starting it costs.
_FEW = 1 << 28
# Of whoever says how many threads there should be, and need not be bounded.
_SAID = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def fitting_threads(module: nn.Module, batch_size: int) -> Iterator[int]:
    """No more threads than help, inside this block; how many there are outside of it."""
    outside = torch.get_num_threads()
    with threads(threads_for(module, batch_size)):
        yield outside


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """This many threads inside this block; None changes nothing."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_for(module: nn.Module, batch_size: int) -> int:
    """How many threads a search of this module should have: those that were asked for, if any."""
    now = torch.get_num_threads()
    asked = any(name in os.environ for name in _SAID) or now != len(os.sched_getaffinity(0))
    if asked or next(module.parameters()).device.type != "cpu":
        return now
    return 1 if _is_small(module, batch_size) else min(now, _quota() or now)


def _is_small(module: nn.Module, batch_size: int) -> bool:
    """Whether it has dense layers alone, each read once per example, and few weights in them."""
    weights = 0
    for child in module.modules():
        own = [p for p in child.parameters(recurse=False) if p.dim() > 1]
        if own and type(child) is not nn.Linear:
            return False
        weights += sum(parameter.numel() for parameter in own)
    return weights * batch_size < _FEW


def _quota(root: Path = _CGROUPS) -> int | None:
    """Cores whose time the process may use together (cgroups 2 or 1); None if there is no limit."""
    try:
        most, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = root / "cpu"
            most = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (most.isdecimal() and period.isdecimal() and int(period)):  # `max` or -1: no limit
        return None
    return max(1, ceil(int(most) / int(period)))
