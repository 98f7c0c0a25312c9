"""Signals: one line and their exit code, once and twice, whatever they come in the middle of."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from slt_compress.cli.failing import told_in_one_line
from slt_compress.errors import SltError

BUSY = """
import sys, time
from slt_compress.cli.stopping import signals_heard
with signals_heard(is_process=True):
    try:
        print("ready", flush=True)
        while True:
            sys.stderr.write("a line of its own\\n")
    finally:
        time.sleep(0.3)
        print("cleaned up", flush=True)
"""
SWALLOWED = """
import time
from slt_compress.cli.stopping import signals_heard
with signals_heard(is_process=True):
    try:
        print("ready", flush=True)
        time.sleep(30)
    except BaseException:
        raise ValueError("what a library made of it") from None
"""


STEPPING = """
import time
from pathlib import Path
from slt_compress.cli.stopping import signals_heard
from slt_compress.searching.interrupting import stopping_between_steps
with signals_heard(is_process=True):
    try:
        with stopping_between_steps() as steps:
            print("ready", flush=True)
            until = time.monotonic() + 30
            while time.monotonic() < until and steps.asked is None:
                time.sleep(0.01)  # a step
            time.sleep({left})
            steps.stop_if_asked(Path("a folder.search"))
    finally:
        print("cleaned up", flush=True)
"""
TOLD = """
import time
from slt_compress.cli.failing import told_in_one_line
from slt_compress.cli.stopping import signals_heard
from slt_compress.errors import SltError
with signals_heard(is_process=True), told_in_one_line():
    try:
        print("ready", flush=True)
        time.sleep(30)
    except BaseException:
        raise SltError("what we made of what a library made of it") from None
"""


def stopped(code, signum, times):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    for _ in range(times):
        process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2, 5])
def test_signals_give_one_line_and_let_the_cleaning_up_end(signum, times):
    code, out, err = stopped(BUSY, signum, times)
    assert code == 128 + signum
    assert out == "cleaned up\n"
    assert err.count("interrupted: nothing was left half-written\n") == 1
    assert "Traceback" not in err
    assert "reentrant" not in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_a_step_and_says_how_to_go_on(signum):
    code, out, err = stopped(STEPPING.format(left=0.2), signum, 1)
    assert (code, out) == (128 + signum, "cleaned up\n")
    assert err == (
        "stopping after this step, to save the progress; once more stops at once\n"
        "interrupted: the same command goes on from here, or "
        "slt-compress search --resume 'a folder.search'\n"
    )


def test_a_second_signal_does_not_wait():
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STEPPING.format(left=30))], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "cleaned up\n")
    assert first.startswith("stopping after this step")
    assert err == "interrupted: nothing was left half-written\n"


@pytest.mark.parametrize("made", [SWALLOWED, TOLD], ids=["library", "own"])
def test_an_error_that_a_library_made_of_a_signal_is_not_shown(made):
    code, _, err = stopped(made, signal.SIGTERM, 1)
    assert (code, err) == (143, "interrupted: nothing was left half-written\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (SltError("what was wrong"), "error: what was wrong"),
        (OSError(28, "No space left on device", "x"), "error: No space left on device: x"),
        (MemoryError(), "error: there is not enough memory"),
        (RuntimeError("can't allocate memory: you tried"), "error: there is not enough memory"),
    ],
    ids=["own", "disk", "memory", "torch"],
)
def test_what_the_machine_refuses_is_a_line(capsys, error, line):
    with pytest.raises(SystemExit) as caught, told_in_one_line():
        raise error
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == 1


def test_a_fault_of_our_own_is_not_hidden():
    with pytest.raises(RuntimeError, match="a fault"), told_in_one_line():
        raise RuntimeError("a fault")


STARTING = """
import sys
from slt_compress.cli.stopping import signals_heard
sys.path.insert(0, {folder!r})
with signals_heard(is_process=True):
    import torch
"""
IMPORTED = """
import os, time
print("ready", flush=True)
try:
    time.sleep(30)
except BaseException:
    os.abort()  # as an exception in the middle of a library's C++ can do
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_the_imports_raises_nothing_there(signum, tmp_path):
    (tmp_path / "torch.py").write_text(IMPORTED)
    code, _, err = stopped(STARTING.format(folder=str(tmp_path)), signum, 1)
    assert (code, err) == (128 + signum, "interrupted: nothing was left half-written\n")


IN_A_CALLBACK = """
import time
from slt_compress.cli.stopping import signals_heard

class Dying:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(1)

with signals_heard(is_process=True):
    Dying()
    time.sleep(30)
"""


def test_a_signal_that_a_destructor_loses_is_raised_again_and_not_told():
    code, _, err = stopped(IN_A_CALLBACK, signal.SIGTERM, 1)
    assert (code, err) == (143, "interrupted: nothing was left half-written\n")
