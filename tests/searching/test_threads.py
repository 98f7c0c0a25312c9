"""How many threads a search takes: by the network and the machine's limits, never by its load."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import slt_compress
from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.searching import threads as limits
from slt_compress.searching.recipes import parse_recipe
from slt_compress.searching.state import Step
from slt_compress.searching.threads import _quota, fitting_threads, threads, threads_for

LENET = REFERENCE["lenet-300-100"].build


@pytest.fixture
def cores(monkeypatch):
    """A process that may use four cores, with a thread on each, as torch would start it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    with threads(4):
        yield


@pytest.fixture
def quota(monkeypatch, tmp_path):
    def limit(text):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(limits, "_quota", lambda: _quota(tmp_path))

    return limit


def test_a_small_dense_network_takes_one_thread(cores):
    assert threads_for(LENET(10), 64) == 1


@pytest.mark.parametrize(
    ("module", "batch"),
    [(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), 64), (nn.Linear(4096, 4096), 64),
     (nn.Embedding(10, 10), 1)],
)  # fmt: skip
def test_others_take_what_there_is(cores, quota, module, batch):
    quota("max 100000")
    assert threads_for(module, batch) == 4


@pytest.mark.parametrize(
    ("text", "count"),
    [("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)],
)
def test_the_quota_of_a_container_bounds_them(cores, quota, text, count):
    quota(text)
    assert threads_for(nn.Linear(4096, 4096), 64) == count


@pytest.mark.parametrize("content", ["", "max", "nonsense here", "1 0", "-1 100000"])
def test_no_limit_and_nonsense_bound_nothing(tmp_path, content):
    (tmp_path / "cpu.max").write_text(content)
    assert _quota(tmp_path) is None


def test_cgroups_of_the_first_version(tmp_path):
    assert _quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for most, count in {"300000": 3, "-1": None}.items():
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{most}\n")
        assert _quota(tmp_path) == count


def test_who_says_how_many_is_heard(cores, monkeypatch):
    with threads(3):  # set by the caller: it differs from the cores
        assert threads_for(LENET(10), 64) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads_for(LENET(10), 64) == 4


def test_the_threads_of_the_caller_come_back(cores):
    with fitting_threads(LENET(10), 64) as outside:
        assert (torch.get_num_threads(), outside) == (1, 4)
    with pytest.raises(KeyError), fitting_threads(LENET(10), 64):
        raise KeyError
    assert torch.get_num_threads() == 4


def test_a_search_steps_on_one_thread_and_its_probe_is_the_callers(cores, tmp_path):
    seen = []

    def look(event):
        if isinstance(event, Step):
            seen.append(torch.get_num_threads())

    recipe = parse_recipe({"init": "random", "dataset": "digits", "evaluation": {"limit": 32},
                           "training": {"steps": 2, "batch_size": 16}})  # fmt: skip
    ticket = slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "t", progress=look)
    assert seen == [1, 1]
    assert torch.get_num_threads() == 4
    checks = slt_compress.verify(ticket.path, in_process=True)
    assert checks.ok
    assert any("bit" in check.detail for check in checks.checks if "logits" in check.name)
