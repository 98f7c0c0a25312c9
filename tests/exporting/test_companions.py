"""No local file leaves by an export, and a downloaded folder names no place on this machine."""

from __future__ import annotations

import json
import os
import shutil

import pytest

import slt_compress
from slt_compress.checkpoints.companions import copy_companions, is_own_file
from slt_compress.checkpoints.downloaded import is_downloaded, local_record
from slt_compress.errors import SltError, SourceError
from slt_compress.searching.recipes import parse_recipe

PICO = {"target_sparsity": 0.5, "method": "magnitude", "evaluation": {"limit": 2},
        "training": {"batch_size": 2}}  # fmt: skip
FORMATS = ("dense", "bitmask", "mask")


@pytest.fixture(scope="module")
def origin(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin") / "bert"
    shutil.copytree(checkpoints["bert"], folder)
    return folder


@pytest.fixture(scope="module")
def ticket(origin, data_sets, tmp_path_factory):
    return slt_compress.search(
        str(origin), data_sets["reviews"], recipe=parse_recipe(PICO),
        out=tmp_path_factory.mktemp("tickets") / "bert",
    ).path  # fmt: skip


@pytest.fixture(scope="module")
def random_ticket(data_sets, tmp_path_factory):
    return slt_compress.search(
        "lenet-300-100", "digits", recipe=parse_recipe(PICO | {"init": "random"}),
        out=tmp_path_factory.mktemp("tickets") / "lenet",
    ).path  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_companions_are_those_of_the_opened_origin(ticket, tmp_path, format):
    found = slt_compress.export(ticket, format=format, out=tmp_path / "x").path
    assert (found / "tokenizer.json").is_file()


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_a_ticket_names_is_not_copied(random_ticket, tmp_path, format):
    private = tmp_path / "private"
    private.mkdir()
    (private / "tokenizer_notes.json").write_text("mine")
    shutil.copytree(random_ticket, tmp_path / "t")
    manifest = json.loads((tmp_path / "t" / "ticket.json").read_text())
    manifest["origin"]["companions"] = {"folder": str(private), "repo": None}
    (tmp_path / "t" / "ticket.json").write_text(json.dumps(manifest))
    found = slt_compress.export(tmp_path / "t", format=format, out=tmp_path / "x").path
    assert not (found / "tokenizer_notes.json").exists()


def test_a_link_that_leaves_its_folder_is_not_followed(tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "vocab.txt").write_text("mine")
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer_config.json").symlink_to(source / "tokenizer.json")
    (source / "vocab.txt").symlink_to(tmp_path / "private" / "vocab.txt")
    (source / "merges.txt").symlink_to("../private/vocab.txt")
    os.mkfifo(source / "spiece.model")
    (tmp_path / "out").mkdir()
    assert copy_companions(source, tmp_path / "out") == ["tokenizer.json", "tokenizer_config.json"]


def test_a_snapshot_of_the_cache_has_its_files_in_blobs(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    (blobs / "1").write_text("{}")
    (tmp_path / "elsewhere").write_text("mine")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1")
    (snapshot / "vocab.txt").symlink_to(tmp_path / "elsewhere")
    assert is_own_file(snapshot / "tokenizer.json", snapshot)
    assert not is_own_file(snapshot / "vocab.txt", snapshot)
    assert is_downloaded(snapshot)


@pytest.mark.parametrize("mark", [".git", ".cache/huggingface"])
@pytest.mark.parametrize("verb", ["load", "export", "verify", "evaluate"])
def test_a_downloaded_ticket_names_no_local_origin(ticket, origin, tmp_path, mark, verb):
    folder = tmp_path / "t"
    shutil.copytree(ticket, folder)
    (folder / mark).mkdir(parents=True)
    verbs = {
        "load": slt_compress.load,
        "export": lambda path, **more: slt_compress.export(
            path, format="bitmask", out=tmp_path / f"{path.name}-{len(more)}", **more
        ),
        "verify": lambda path, **more: slt_compress.verify(path, in_process=True, **more),
        "evaluate": slt_compress.evaluate,
    }
    with pytest.raises(SltError, match="was downloaded, and names the local path") as caught:
        verbs[verb](folder)
    assert "--origin PATH" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert verbs[verb](folder, origin=origin)
    assert verbs[verb](ticket)  # one that was made here may


def test_a_downloaded_mask_names_no_local_origin(ticket, origin, tmp_path):
    folder = slt_compress.export(ticket, format="mask", out=tmp_path / "x").path
    (folder / ".git").mkdir()
    with pytest.raises(SourceError, match="was downloaded"):
        slt_compress.load(folder)
    assert slt_compress.load(folder, origin=origin)


def test_a_downloaded_record_names_no_folder_of_companions(tmp_path):
    (tmp_path / ".git").mkdir()
    record = {"kind": "hub", "source": "a/b", "companions": {"folder": "/x", "repo": None}}
    assert local_record(tmp_path, record, None)["companions"] is None
    assert local_record(tmp_path / "other", record, None) is record
