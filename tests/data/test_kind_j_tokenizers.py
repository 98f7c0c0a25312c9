"""Kind J: tokenizers are found by `AutoTokenizer`, whatever files they read or do without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pico
import pytest
import transformers
from data_sets import ready, write_table

from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.companions import copy_companions
from slt_compress.data.tokens import open_tokenizer
from slt_compress.errors import DataError

BYTES = {"byt5": ("T5Config", "ByT5Tokenizer"), "canine": ("CanineConfig", "CanineTokenizer"),
         "perceiver": ("PerceiverConfig", "PerceiverTokenizer"),
         "dia": ("DiaConfig", "DiaTokenizer")}  # fmt: skip


def checkpoint_in(folder: Path, config: Any, **known: Any) -> Checkpoint:
    config.save_pretrained(folder)
    return Checkpoint(
        source=str(folder), kind="folder", family="transformers", task="text-classification",
        module=transformers.BertModel(transformers.BertConfig(**pico.SMALL, **pico.TEXT)),
        config=config.to_dict(), folder=folder, **known,
    )  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_tokenizers_without_a_vocabulary_are_found(tmp_path: Path, name: str) -> None:
    config, tokenizer = (getattr(transformers, which) for which in BYTES[name])
    tokenizer().save_pretrained(tmp_path)
    opened = open_tokenizer(checkpoint_in(tmp_path, config()))
    assert type(opened).__name__ == BYTES[name][1]
    assert opened(["abc", ""], padding=True)["input_ids"][0]


@pytest.mark.parametrize("name", ["canine", "perceiver"])
def test_they_are_found_by_the_config_alone(tmp_path: Path, name: str) -> None:
    config, tokenizer = BYTES[name]
    opened = open_tokenizer(checkpoint_in(tmp_path, getattr(transformers, config)()))
    assert type(opened).__name__ == tokenizer


def test_my_t5_reads_a_table_of_bytes(tmp_path: Path) -> None:
    pytest.importorskip("transformers.models.myt5")
    import json

    table = {"decompose_map": {}, "merge_map": {}}
    (tmp_path / "byte_maps.json").write_text(json.dumps(table))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "MyT5Tokenizer"}')
    opened = open_tokenizer(checkpoint_in(tmp_path, transformers.T5Config()))
    assert type(opened).__name__ == "MyT5Tokenizer"


def test_prophetnet_reads_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "prophetnet.tokenizer").write_text("[PAD]\n[UNK]\n[SEP]\n[CLS]\n[MASK]\ncat\n")
    opened = open_tokenizer(checkpoint_in(tmp_path, transformers.ProphetNetConfig()))
    assert opened.tokenize("cat") == ["cat"]
    (tmp_path / "copy").mkdir()
    copied = copy_companions(tmp_path, tmp_path / "copy")
    assert "prophetnet.tokenizer" in copied


@pytest.mark.parametrize("name", ["Bert", "Roberta", "GPT2", "T5", "Llama", "ViT", "XLMRoberta"])
def test_a_missing_vocabulary_is_told_and_not_made_up(tmp_path: Path, name: str) -> None:
    config = getattr(transformers, f"{name}Config")()
    with pytest.raises(DataError, match=r"has no tokenizer \(tokenizer\.json"):
        open_tokenizer(checkpoint_in(tmp_path, config))


def test_a_model_of_bytes_is_prepared(tmp_path: Path) -> None:
    transformers.PerceiverTokenizer(model_max_length=16).save_pretrained(tmp_path)
    model = checkpoint_in(tmp_path, transformers.PerceiverConfig(), num_classes=2)
    table = write_table(tmp_path / "train.parquet", {"text": ["ab", "c"] * 4, "label": [0, 1] * 4})
    batch = next(iter(ready(table, model).test))
    assert batch["input_ids"].shape[0] >= 1
