"""A short run of the fuzzer; `python -m tests.fuzz --count 200000` is the long one."""

from __future__ import annotations

import random
import signal
import time

import pytest

from fuzz import mutations, running
from fuzz.running import SLOW, Tally, _one, alarms, run
from fuzz.target import Target
from fuzz.targets import targets
from slt_compress.errors import SltError

BAD = {"wrong", "traceback", "hang", "slow", "large"}


def test_no_mutation_ends_in_a_traceback_or_opens_wrongly(tmp_path):
    tally = run(targets(tmp_path), 160, seed=20261128)
    assert tally.total.total() == 160
    assert not BAD & set(tally.total), tally.bad
    assert tally.total["refused"] > 40


def raising(error):
    def read():
        raise error

    return read


def test_the_fuzzer_notices_what_is_bad(tmp_path):
    tally = Tally()
    for name, read, wanted in [
        ("traceback", raising(KeyError("x")), None),
        ("lines", raising(SltError("two\nlines")), None),
        ("refused", raising(SltError("one line")), None),
        ("wrong", lambda: 2, 1),
        ("same", lambda: 1, 1),
    ]:
        target = Target(name, tmp_path / "x", mutations.mutated_json, read)
        _one(tally, target, wanted, 0)
    outcomes = {name: next(iter(counts)) for name, counts in tally.counts.items()}
    assert outcomes == {
        "traceback": "traceback", "lines": "traceback", "refused": "refused", "wrong": "wrong",
        "same": "same",
    }  # fmt: skip
    assert {entry["target"] for entry in tally.bad} == {"traceback", "lines", "wrong"}


def outcome_of(read, folder, monkeypatch, busy, still, slow=SLOW):
    monkeypatch.setattr(running, "HANG", busy)
    monkeypatch.setattr(running, "STILL", still)
    monkeypatch.setattr(running, "SLOW", slow)
    tally = Tally()
    with alarms():
        _one(tally, Target("clock", folder / "x", mutations.mutated_json, read), None, 0)
    ((outcome, _),) = tally.total.items()
    return outcome


def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_busy_machine_is_no_hang_and_not_slow(tmp_path, monkeypatch):
    def wait():  # the process is not running: what it looks like when others have the cores
        time.sleep(0.5)

    assert outcome_of(wait, tmp_path, monkeypatch, busy=0.2, still=60, slow=0.2) == "opened"


@pytest.mark.parametrize(
    ("read", "busy", "still"),
    [(lambda: burn(5), 0.1, 60), (lambda: time.sleep(5), 60, 0.1)],
    ids=["busy", "waiting"],
)
def test_a_hang_is_noticed(tmp_path, monkeypatch, read, busy, still):
    assert outcome_of(read, tmp_path, monkeypatch, busy, still) == "hang"


def test_a_slow_read_is_noticed(tmp_path, monkeypatch):
    slow = outcome_of(lambda: burn(0.3), tmp_path, monkeypatch, busy=60, still=60, slow=0.1)
    assert slow == "slow"


def test_the_alarms_of_before_are_put_back():
    before = [signal.getsignal(kind) for kind in (signal.SIGPROF, signal.SIGALRM)]
    with alarms():
        assert signal.getsignal(signal.SIGPROF) not in before
    assert [signal.getsignal(kind) for kind in (signal.SIGPROF, signal.SIGALRM)] == before


def test_mutations_are_reproducible_and_change_something():
    data = b'{"a": [1, 2, {"b": "text"}], "c": 0.5}'
    made = [mutations.mutated_json(data, random.Random(i)) for i in range(50)]
    assert made == [mutations.mutated_json(data, random.Random(i)) for i in range(50)]
    assert len(set(made)) > 40
