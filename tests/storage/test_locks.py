"""Regular files, locks that die with their process, proofs that a folder can be written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import SltError
from slt_compress.searching.recipes import read_recipe
from slt_compress.storage.files import (
    atomic_folder,
    read_json,
    read_manifest,
    read_safetensors,
    sha256_file,
    unreadable,
    write_json,
)
from slt_compress.storage.locks import locked, remove_unfinished, unfinished_folder
from slt_compress.storage.memory import is_low_memory
from slt_compress.storage.regular import open_regular
from slt_compress.storage.writable import prove_writable
from slt_compress.tickets import check_target


@pytest.mark.parametrize(
    "read",
    [
        lambda path: open_regular(path).read(),
        sha256_file,
        lambda path: read_json(path, SltError),
        lambda path: read_safetensors(path, SltError),
        lambda path: read_manifest(path, SltError),
        lambda path: read_recipe(str(path)),
        lambda path: open_checkpoint(str(path.parent)),
        lambda path: open_checkpoint("lenet-300-100", weights=path),
    ],
    ids=["open", "hash", "json", "tensors", "manifest", "recipe", "folder", "weights"],
)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "config.json")
    signal.alarm(20)
    try:
        with pytest.raises((SltError, OSError)):
            read(tmp_path / "config.json")
    finally:
        signal.alarm(0)


def test_low_memory_by_whatever_name():
    error = ValueError("something else")
    error.__cause__ = MemoryError()
    assert is_low_memory(error)
    assert is_low_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_low_memory(OSError(12, "Cannot allocate memory"))
    assert not is_low_memory(RuntimeError("shapes do not match"))


def test_too_many_open_files_are_not_called_damage(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    cause = OSError(24, "Too many open files")
    told = str(unreadable(tmp_path / "x.safetensors", cause, SltError))
    assert "too many files are open" in told
    assert "intact" in told
    with limited(resource.RLIMIT_NOFILE, 3), pytest.raises(SltError, match="too many files are"):
        read_safetensors(tmp_path / "x.safetensors", SltError)


@contextmanager
def limited(what, most):
    before = resource.getrlimit(what)
    resource.setrlimit(what, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


HOLD = """
import sys, time
from pathlib import Path
from slt_compress.storage.locks import locked, unfinished_folder
with unfinished_folder(Path(sys.argv[1])) as part, locked(Path(sys.argv[2])):
    (part / "x").write_text("x")
    print("held", flush=True)
    time.sleep(60)
"""


def test_what_a_dead_process_left_goes_and_what_a_live_one_has_stays(tmp_path):
    (tmp_path / "locked").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), tmp_path / "t", tmp_path / "locked"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "held\n"
        (part,) = tmp_path.glob(".t.part-*")
        remove_unfinished(tmp_path / "t")
        assert (part / "x").exists()
        with pytest.raises(BlockingIOError), locked(tmp_path / "locked"):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert part.exists()
    with locked(tmp_path / "locked"), atomic_folder(tmp_path / "t") as folder:
        assert not part.exists()
        (folder / "y").write_text("y")
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["y"]


def test_an_unfinished_folder_is_gone_after_an_error(tmp_path):
    with pytest.raises(KeyError), unfinished_folder(tmp_path / "t"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def write_folder(path: Path) -> None:
    with atomic_folder(path):
        pass


WRITES = {"mkdir": write_folder, "open": lambda path: write_json(path, {})}


@pytest.mark.parametrize("call", WRITES)
def test_an_interrupt_right_after_something_is_made_leaves_nothing(tmp_path, monkeypatch, call):
    made = getattr(Path, call)

    def interrupted(self, *arguments, **options):
        stream = made(self, *arguments, **options)
        if ".part-" in self.name:
            if stream is not None:
                stream.close()
            raise SystemExit(143)
        return stream

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, interrupted)
        with pytest.raises(SystemExit):
            WRITES[call](tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


def test_the_proof_leaves_nothing(tmp_path):
    prove_writable(tmp_path / "new")
    prove_writable(tmp_path / "deep" / "er" / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    prove_writable(tmp_path / "empty")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_place_that_cannot_be_written_is_refused_before_the_search(tmp_path):
    with pytest.raises(SltError, match=r"cannot be written|is not a folder"):
        check_target(type(tmp_path)("/proc/nothing/ticket"))
