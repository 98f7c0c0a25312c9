"""Folders that are no checkpoints: what they are, and what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from slt_compress.checkpoints import open_checkpoint, sketch_checkpoint
from slt_compress.checkpoints.guidance import no_checkpoint
from slt_compress.errors import SourceError

KINDS = {
    "adapter": (["adapter_config.json", "adapter_model.safetensors"], "merge_and_unload"),
    "pipeline": (["model_index.json", "unet/config.json", "vae/config.json"], "subfolder="),
    "sentences": (["modules.json", "0_Transformer/config.json", "1_Pooling/config.json"],
                  "/0_Transformer"),
    "gguf": (["model-Q4_K_M.gguf", "README.md"], "GGUF"),
    "trainer": (["checkpoint-500/config.json", "checkpoint-1000/config.json", "runs/x"],
                "/checkpoint-1000"),
    "nothing": (["notes.txt"], "no config.json"),
}  # fmt: skip


def filled(folder: Path, names: list[str]) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_says_what_to_give(kind: str, tmp_path: Path) -> None:
    names, answer = KINDS[kind]
    folder = filled(tmp_path / kind, names)
    for look in (open_checkpoint, sketch_checkpoint):
        with pytest.raises(SourceError, match=answer) as caught:
            look(str(folder))
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_weights_that_are_gguf(tmp_path: Path) -> None:
    folder = filled(tmp_path / "llama", ["model.gguf"])
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(SourceError, match="GGUF"):
        open_checkpoint(str(folder))
    with pytest.raises(SourceError, match="GGUF"):
        open_checkpoint(str(folder / "model.gguf"))
    assert "has no config.json" in no_checkpoint([], "x")
