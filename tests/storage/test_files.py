"""Files: whole or absent, hashed by every bit, read without trust."""

from __future__ import annotations

import json
import stat
import struct
import subprocess
import sys

import pytest
import torch

from slt_compress.checkpoints.weight_files import read_tensors
from slt_compress.errors import ArtifactError, TicketError
from slt_compress.storage.files import (
    atomic_folder,
    atomic_write,
    json_text,
    read_json,
    read_manifest,
    read_safetensors,
    sha256_file,
    sha256_tensors,
    write_json,
    write_safetensors,
)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_atomic_write_replaces_the_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as stream:
        stream.write(b"new and longer")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail():
        with atomic_write(path) as stream:
            stream.write(b"half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_atomic_folder_appears_whole(tmp_path):
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as part:
        (part / "a").write_bytes(b"1")
        (part / "sub").mkdir()
        (part / "sub" / "b").write_bytes(b"2")
        assert not path.exists()
    assert names(path) == ["a", "sub"]
    assert (path / "sub" / "b").read_bytes() == b"2"
    assert names(path.parent) == ["folder"]


def test_atomic_folder_takes_an_empty_folder(tmp_path):
    with atomic_folder(tmp_path / "x") as part:
        (tmp_path / "x").mkdir()
        (part / "a").write_bytes(b"1")
    assert names(tmp_path / "x") == ["a"]


def test_a_failed_folder_leaves_nothing(tmp_path):
    def fail():
        with atomic_folder(tmp_path / "x") as part:
            (part / "a").write_bytes(b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path) == []


def test_atomic_folder_refuses_what_is_there(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_bytes(b"1")
    (tmp_path / "file").write_bytes(b"1")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError), atomic_folder(tmp_path / name):
            pytest.fail("entered")
    assert names(tmp_path / "full") == ["mine"]


def test_atomic_folder_refuses_what_came_meanwhile(tmp_path):
    def race():
        with atomic_folder(tmp_path / "x") as part:
            (part / "a").write_bytes(b"1")
            (tmp_path / "x").mkdir()
            (tmp_path / "x" / "theirs").write_bytes(b"2")

    with pytest.raises(FileExistsError):
        race()
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["theirs"]


def test_files_get_ordinary_permissions(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    mode = stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)
    write_safetensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    with atomic_folder(tmp_path / "x") as part:
        (part / "b").write_bytes(b"")
        (part / "b").chmod(0o600)
    for file in (tmp_path / "a.safetensors", tmp_path / "x" / "b"):
        assert stat.S_IMODE(file.stat().st_mode) == mode


def test_sha256_file_is_the_known_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_sha256_tensors_sees_every_bit_and_not_the_order():
    base = {"a": torch.tensor([0.0, 1.0]), "b": torch.zeros(0, 3), "c": torch.tensor(1)}
    same = {name: base[name].clone() for name in reversed(base)}
    others = [
        base | {"a": torch.tensor([-0.0, 1.0])},
        base | {"a": torch.tensor([[0.0, 1.0]])},
        base | {"a": torch.tensor([0.0, 1.0]).view(torch.int32)},
        base | {"b": torch.zeros(3, 0)},
        {"a": base["a"], "b": base["b"], "d": base["c"]},
    ]
    hashes = [sha256_tensors(tensors) for tensors in (base, *others)]
    assert sha256_tensors(same) == hashes[0]
    assert len(set(hashes)) == len(hashes)


def test_sha256_tensors_reads_values_and_not_memory():
    wide = torch.arange(12.0).reshape(3, 4)
    assert sha256_tensors({"a": wide.T}) == sha256_tensors({"a": wide.T.contiguous()})


def test_json_is_sorted_and_strict(tmp_path):
    value = {"b": [1, 2.5, None], "a": {10: "x", 2: "é"}, "n": float("nan"), "i": -float("inf")}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert list(json.loads(text)) == ["a", "b", "i", "n"]
    assert "NaN" not in text.replace('"NaN"', "")
    back = read_json(tmp_path / "a.json", TicketError)
    assert back["a"] == {"10": "x", "2": "é"}
    assert back["i"] == -float("inf")
    assert back["n"] != back["n"]
    # What was read writes the same bytes again.
    assert json_text(back, indent=2) + "\n" == text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "a JSON list"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_bad_json_is_one_sentence(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(TicketError, match=words) as caught:
        read_json(path, TicketError)
    assert "a.json" in str(caught.value)


def test_missing_and_huge_json_are_refused(tmp_path):
    with pytest.raises(TicketError, match="cannot read"):
        read_json(tmp_path / "none.json", TicketError)
    with (tmp_path / "big.json").open("wb") as stream:
        stream.truncate(64 * 2**20 + 1)
    with pytest.raises(TicketError, match="larger than 64 MiB"):
        read_json(tmp_path / "big.json", TicketError)


def test_safetensors_round_trip_with_shared_memory(tmp_path):
    wide = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": wide, "tied": wide, "view": wide.T, "part": wide[1:], "none": wide[:0]}
    write_safetensors(tmp_path / "a.safetensors", tensors, {"b": 1, "a": "ü"})
    back = read_safetensors(tmp_path / "a.safetensors", TicketError)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert read_manifest(tmp_path / "a.safetensors", TicketError) == {"a": "ü", "b": 1}
    write_safetensors(tmp_path / "b.safetensors", tensors)
    assert read_manifest(tmp_path / "b.safetensors", TicketError) is None
    assert names(tmp_path) == ["a.safetensors", "b.safetensors"]


def test_safetensors_bytes_are_the_same_in_every_process(tmp_path):
    program = (
        "import sys, torch, pathlib; from slt_compress.storage.files import write_safetensors as w;"
        "w(pathlib.Path(sys.argv[1]), {k: torch.ones(2) for k in 'zyx'}, {'b': 1, 'a': {'d': 2}})"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / seed)],
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def packed(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        packed({}, length=2**62),
        packed({}, length=1000),
        packed(b"{xx"),
        packed(b"\xff\xfe{}"),
        packed([]),
        packed(b'{"a":' * 100_000),
        packed(entry(), b"\0" * 8),
        packed(entry(shape=(2,), offsets=(0, 8)), b"\0" * 4),
        packed(entry(shape=(3,), offsets=(0, 8)), b"\0" * 8),
        packed(entry(shape=(2**62, 2**62)), b"\0" * 4),
        packed(entry(shape=(-1,)), b"\0" * 4),
        packed(entry(shape=(0, 2**63 + 5), offsets=(0, 0))),
        packed(entry(offsets=(4, 8)), b"\0" * 8),
        packed(entry(dtype="Q9"), b"\0" * 4),
        packed(entry(dtype="F6_E2M3", shape=(4,), offsets=(0, 3)), b"\0" * 3),
        packed({"__metadata__": {"slt": 1}} | entry(), b"\0" * 4),
    ],
)
def test_damaged_safetensors_are_one_sentence(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(
        ArtifactError, match=r"a\.safetensors is not an intact safetensors file"
    ) as info:
        read_safetensors(path, ArtifactError)
    assert "\n" not in str(info.value)


def test_a_missing_safetensors_file_and_a_bad_manifest_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="does not exist"):
        read_safetensors(tmp_path / "none.safetensors", ArtifactError)
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed({"__metadata__": {"slt": "[1]"}} | entry(), b"\0" * 4))
    with pytest.raises(ArtifactError, match="manifest in"):
        read_manifest(path, ArtifactError)


def test_tensors_lie_where_kernels_round_as_everywhere_else(tmp_path):
    path = tmp_path / "model.safetensors"
    saved = {name: torch.randn(3) for name in "abcdef"}  # 12 bytes each: no two at a multiple of 64
    write_safetensors(path, saved)
    for found in (read_safetensors(path, ArtifactError), read_tensors((path,))):
        assert found.keys() == saved.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, saved[name])
            assert tensor.data_ptr() % 64 == 0
