"""What a search tells as it runs: to a callback, on a bar, and to nobody."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

import slt_compress
from slt_compress.searching.events import PARTS, Advanced, HeldOut, Part
from slt_compress.searching.recipes import parse_recipe
from slt_compress.searching.state import Step

SHORT = {
    "init": "random", "training": {"steps": 8, "batch_size": 32, "selections": 3, "hard": 0.5},
    "evaluation": {"limit": 64},
}  # fmt: skip


def search(tmp_path, **options):
    changes = options.pop("changes", {})
    recipe = parse_recipe({**SHORT, "dataset": "digits", **changes})
    return slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "t", **options)


def test_the_parts_come_in_order_and_hold_their_steps(tmp_path):
    events = []
    search(tmp_path, progress=events.append)
    names = [event.name for event in events if isinstance(event, Part)]
    assert names == [
        "open", "start", "dense", "search", "select", "search", "select", "search", "controls",
        "soft", "mask", "write",
    ]  # fmt: skip
    assert set(names) < set(PARTS)
    part, inside = "", {}
    for event in events:
        part = event.name if isinstance(event, Part) else part
        inside.setdefault(part, []).append(event)
    steps = [event for event in events if isinstance(event, Step)]
    assert [step.index for step in steps] == list(range(8))
    assert all(step in inside["search"] for step in steps)
    held_out = [event for event in events if isinstance(event, HeldOut)]
    assert [event.index for event in held_out] == [6, 7]
    assert all(event in inside["select"] for event in held_out)
    for name in ("dense", "select", "soft", "mask"):
        counts = [event for event in inside[name] if isinstance(event, Advanced)]
        assert counts[-1].done == counts[-1].total
        assert all(b.done in (1, a.done + 1) for a, b in pairwise(counts))


def test_the_losses_are_those_of_the_history(tmp_path):
    events = []
    ticket = search(tmp_path, progress=events.append)
    told = {event.index: event.loss for event in events if isinstance(event, HeldOut)}
    rows = map(json.loads, (ticket.path / "history.jsonl").read_text().splitlines())
    assert told == {row["index"]: row["held_out"] for row in rows if "held_out" in row}


def test_a_callback_changes_no_byte_of_the_ticket(tmp_path):
    told = search(tmp_path / "told", progress=lambda event: None)
    silent = search(tmp_path / "silent")
    for file in silent.path.iterdir():
        if file.name != "run.json":
            assert (told.path / file.name).read_bytes() == file.read_bytes(), file.name


def test_what_a_callback_raises_ends_a_search_that_can_go_on(tmp_path):
    steps = []

    def stop(event):
        if isinstance(event, Step) and event.index == 2:
            raise KeyboardInterrupt

    def keep(event):
        if isinstance(event, Step):
            steps.append(event.index)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, progress=stop)
    search(tmp_path, progress=keep)
    assert steps == [3, 4, 5, 6, 7]


def test_a_bar_is_drawn_on_stderr_and_stdout_stays_empty(tmp_path, capsys):
    search(tmp_path, progress=True)
    said = capsys.readouterr()
    assert said.out == ""
    for name in ("dense", "search", "controls"):
        assert PARTS[name] in said.err
    assert "8/8" in said.err
    assert "held-out" in said.err


def test_nothing_is_drawn_unless_asked(tmp_path, capsys):
    search(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_blocks_of_swaps_are_counted(tmp_path):
    events = []
    search(tmp_path, changes={"method": "swaps"}, progress=events.append)
    counts = [event for event in events[: events.index(Part("dense"))] if type(event) is Advanced]
    assert counts
    assert counts[-1].done == counts[-1].total
