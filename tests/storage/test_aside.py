"""Tensors set aside in a file without a name."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from slt_compress.storage import aside
from slt_compress.storage.aside import set_aside

TENSORS = {
    "matrix": torch.arange(12.0).reshape(3, 4), "none": torch.empty(0, 3), "one": torch.tensor(5.0),
    "half": torch.ones(7, dtype=torch.bfloat16), "strided": torch.arange(12.0).reshape(3, 4).t(),
}  # fmt: skip


def mapped_files() -> int:
    return sum("(deleted)" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("where", ["disk", "memory", "a file", "nowhere"])
def test_they_are_what_they_were(tmp_path, where):
    (tmp_path / "file").touch()
    folder = {"disk": tmp_path, "memory": None, "a file": tmp_path / "file",
              "nowhere": tmp_path / "no"}[where]  # fmt: skip
    copies = set_aside(TENSORS, folder)
    assert list(copies) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert copies[name].dtype is torch.float32
        assert torch.equal(copies[name], tensor.float()), name


def test_a_copy_stays_when_the_tensor_changes_and_the_other_way_round(tmp_path):
    for folder in (tmp_path, None):
        tensor = torch.zeros(1000)
        copy = set_aside({"a": tensor}, folder)["a"]
        tensor.fill_(1.0)
        assert not copy.any()
        copy.fill_(2.0)
        assert tensor.eq(1.0).all()


def test_the_file_has_no_name_and_goes_with_the_copies(tmp_path):
    before = mapped_files()
    copies = set_aside(TENSORS, tmp_path)
    assert os.listdir(tmp_path) == []
    assert mapped_files() > before
    del copies
    gc.collect()
    assert mapped_files() == before


def test_a_full_disk_is_no_reason_to_stop(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aside, "_mapped", full)
    assert torch.equal(set_aside(TENSORS, tmp_path)["matrix"], TENSORS["matrix"])
