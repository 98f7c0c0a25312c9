"""HOW_TO_LOAD.md, and the modules of sentence-transformers, which travel with an export."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pico
import pytest
from artifact_cases import export, mask_
from safetensors.torch import save_file
from torch import ones

from slt_compress.artifacts import read_artifact
from slt_compress.artifacts.formats import EXPORTS
from slt_compress.checkpoints import open_checkpoint
from slt_compress.checkpoints.sentence_files import is_module_file, module_files, wanted_of
from slt_compress.errors import ArtifactError
from slt_compress.evidence.cards import loading_guide
from slt_compress.exporting.pushing import upload_list
from slt_compress.storage.files import read_manifest

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "../outside", "type": "x"},
]


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A tiny model of sentence-transformers, as that library saves it."""
    folder = pico.save_bert(tmp_path / "sentences")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "config_sentence_transformers.json").write_text("{}")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    for name in ("1_Pooling", "2_Dense", "3_Other"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"name": name}))
    save_file({"linear.weight": ones(2, 2)}, folder / "2_Dense" / "model.safetensors")
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    (folder / "2_Dense" / "code.py").write_text("x")
    (folder / "1_Pooling" / "linked.json").symlink_to(tmp_path / "outside" / "config.json")
    return folder


NESTED = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]


@pytest.mark.parametrize("format", ["dense", "auto"])
def test_the_modules_travel(sentences: Path, tmp_path: Path, format: str) -> None:
    checkpoint = open_checkpoint(str(sentences))
    artifact = export(tmp_path / "out", checkpoint, mask_(checkpoint), format)
    root = tmp_path / "out"
    assert sorted(str(p.relative_to(root)) for p in root.glob("*/*")) == NESTED
    for name in (*NESTED, "modules.json", "sentence_bert_config.json",
                 "config_sentence_transformers.json"):  # fmt: skip
        assert (root / name).read_bytes() == (sentences / name).read_bytes()
    assert read_artifact(artifact.path).masks is not None or format == "dense"
    assert set(NESTED) <= {file.relative_to(root).as_posix() for file in upload_list(root)}


@pytest.mark.parametrize("damage", ["changed", "missing", "linked", "listed"])
def test_a_module_is_covered_by_a_hash(sentences: Path, tmp_path: Path, damage: str) -> None:
    checkpoint = open_checkpoint(str(sentences))
    export(tmp_path / "out", checkpoint, mask_(checkpoint), "dense")
    file = tmp_path / "out" / "1_Pooling" / "config.json"
    if damage == "changed":
        file.write_text("{}")
    elif damage == "listed":
        manifest = tmp_path / "out" / "slt.json"
        content: dict[str, Any] = json.loads(manifest.read_text())
        content["nested"]["../outside/config.json"] = "0" * 64
        manifest.write_text(json.dumps(content))
    else:
        text = file.read_text()
        file.unlink()
        if damage == "linked":
            (tmp_path / "elsewhere").write_text(text)
            file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"changed|missing|no file of a module"):
        read_artifact(tmp_path / "out")


def test_other_models_have_no_modules(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(pico.save_bert(tmp_path / "bert")))
    export(tmp_path / "out", checkpoint, mask_(checkpoint), "auto", loading="# x\n")
    manifest = read_manifest(tmp_path / "out" / "weights.slt.safetensors", ArtifactError) or {}
    assert "nested" not in manifest
    assert "HOW_TO_LOAD.md" in manifest["beside"]
    assert (tmp_path / "out" / "HOW_TO_LOAD.md").read_text() == "# x\n"


@pytest.mark.parametrize("content", ["{", "[]", "3", '[{"path": 3}]', '[{"path": "a/b"}]', "[1]"])
def test_a_list_of_modules_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    assert module_files(tmp_path) == []


def test_which_files_are_those_of_modules() -> None:
    names = ["modules.json", *NESTED, "1_Pooling/a.py", "x/config.json", "1_P/a/config.json",
             "2_Dense/pytorch_model.bin"]  # fmt: skip
    assert wanted_of(names) == NESTED
    assert wanted_of(names[1:]) == []
    assert not is_module_file("1_Pooling/../config.json")
    assert not is_module_file(f"1_Pooling{os.sep}.hidden.json")


@pytest.mark.parametrize("format", [*EXPORTS, "shrunk"])
def test_how_to_load_explains_what_a_library_says(format: str) -> None:
    text = loading_guide(format, {"family": "transformers", "task": "causal-lm"})
    assert text.startswith("# How to load this folder\n\n```python\n")
    assert ("OSError" in text) is (format not in ("dense", "onnx"))
    assert "path/to/this/folder" in text
