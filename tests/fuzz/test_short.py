"""A short run of the fuzzer; `python -m tests.fuzz --count 200000` is the long one."""

from __future__ import annotations

import random

from fuzz import mutations
from fuzz.running import Tally, _one, run
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


def test_mutations_are_reproducible_and_change_something():
    data = b'{"a": [1, 2, {"b": "text"}], "c": 0.5}'
    made = [mutations.mutated_json(data, random.Random(i)) for i in range(50)]
    assert made == [mutations.mutated_json(data, random.Random(i)) for i in range(50)]
    assert len(set(made)) > 40
