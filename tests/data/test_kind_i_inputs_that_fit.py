"""Kind I: inputs fit the model, or one sentence before the first step says what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pico
import pytest
import timm
import torch
import transformers
from data_sets import PLAIN, checkpoint, png, ready, write_table
from PIL import Image
from torch import nn

from slt_compress.checkpoints import Checkpoint, open_checkpoint
from slt_compress.data import DataOptions
from slt_compress.errors import DataError
from slt_compress.evidence.metrics import reestimate_batchnorm
from slt_compress.searching.fit_checks import check_fits

LONG = " ".join(pico.WORDS * 10)


def sentences(path: Path, texts: list[str]) -> Path:
    return write_table(path / "train.parquet", {"text": texts, "label": [n % 2 for n in
                                                range(len(texts))]})  # fmt: skip


def roberta(folder: Path, positions: int = 34) -> Checkpoint:
    config = transformers.RobertaConfig(
        **pico.SMALL, vocab_size=32, max_position_embeddings=positions, intermediate_size=32,
        pad_token_id=1, num_labels=2,
    )  # fmt: skip
    transformers.RobertaForSequenceClassification(config).save_pretrained(folder)
    return open_checkpoint(pico.save_tokenizer(folder))


def test_positions_of_padding_are_not_for_text(tmp_path: Path) -> None:
    model = roberta(tmp_path / "roberta")
    data = ready(sentences(tmp_path / "set", [LONG] * 6), model)
    batch = next(iter(data.test))
    assert batch["input_ids"].shape[1] == 32
    assert torch.isfinite(model.forward(model.module, batch)).all()
    check_fits(model, data, frozen=False)
    with pytest.raises(DataError, match=r"data\.max_length is 33 tokens and .* at most 32"):
        ready(sentences(tmp_path / "set", [LONG] * 6), model, DataOptions(max_length=33))


@pytest.mark.parametrize("texts", [[""] * 6, ["", LONG] * 3, [None] * 6, [" "] * 6])
@pytest.mark.parametrize("kind", ["bert", "bare"])
def test_empty_texts_have_a_token(tmp_path: Path, texts: list[Any], kind: str) -> None:
    folder = pico.save_bert(tmp_path / "bert")
    if kind == "bare":  # no special tokens at all, as decoders' tokenizers
        said = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps({**said, "post_processor": None}))
    model = open_checkpoint(folder)
    table = write_table(tmp_path / "set" / "train.parquet", {"text": texts, "label": [0, 1] * 3})
    data = ready(table, model, DataOptions(text=("text",)))
    for batch in (*data.train.epoch(0), *data.test):
        assert batch["input_ids"].dtype == torch.int64
        assert (batch["attention_mask"].sum(1) > 0).all()
        assert torch.isfinite(model.forward(model.module, batch)).all()


def tagger(folder: Path, *, slow: bool = False) -> Checkpoint:
    config = transformers.BertConfig(
        **pico.SMALL, **pico.TEXT, intermediate_size=32, id2label={0: "O", 1: "PER"}
    )
    transformers.BertForTokenClassification(config).save_pretrained(folder)
    if slow:
        transformers.CanineTokenizer(model_max_length=32).save_pretrained(folder)
        return open_checkpoint(folder)
    return open_checkpoint(pico.save_tokenizer(folder))


@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
def test_tags_that_are_missing_are_ignored(tmp_path: Path, named: bool) -> None:
    numbers = [[0, 1], [None, 0], None, [1], [], [0, None]]
    names = [row and [tag if tag is None else "OP"[tag] + "ER" * tag for tag in row]
             for row in numbers]  # fmt: skip
    words = [["the", "cat"], ["a", "dog"], ["it"], ["cat", "dog"], ["cat"], ["the", "newt"]]
    table = {"tokens": words, "ner_tags": names if named else numbers}
    model = tagger(tmp_path / "tagger")
    data = ready(write_table(tmp_path / "set" / "train.parquet", table), model)
    assert data.labels_match
    labels = torch.cat([b["labels"].flatten() for b in (*data.train.epoch(0), *data.test)])
    assert set(labels.tolist()) <= {-100, 0, 1}


def test_tokenizers_in_python_find_the_words_of_tags(tmp_path: Path) -> None:
    words, tags = [["ab", "c"], ["d"], ["efg", "h", "i"]] * 3, [[1, 0], [1], [0, 1, 0]] * 3
    model = tagger(tmp_path / "tagger", slow=True)
    model = replace(model, config={**model.config, "vocab_size": 1_200_000})
    table = write_table(tmp_path / "train.parquet", {"tokens": words, "ner_tags": tags})
    data = ready(table, model, batch_size=1)
    for batch in data.test:
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        given = {chr(token): label for token, label in zip(ids, labels, strict=True)
                 if label != -100}  # fmt: skip
        rows = [dict(zip((w[0] for w in ws), ts, strict=True))
                for ws, ts in zip(words, tags, strict=True)]  # fmt: skip
        assert given in rows


def test_empty_targets_have_a_token(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    model = open_checkpoint(pico.save_tokenizer(tmp_path / "t5"))
    said = json.loads((tmp_path / "t5" / "tokenizer.json").read_text())
    (tmp_path / "t5" / "tokenizer.json").write_text(json.dumps({**said, "post_processor": None}))
    table = {"source": ["the cat"] * 6, "target": [""] * 6}
    data = ready(write_table(tmp_path / "set" / "train.parquet", table), model)
    batch = next(iter(data.test))
    assert (batch["labels"] != -100).any(1).all()
    assert torch.isfinite(model.forward(model.module, batch)).all()


# ---------------------------------------------------------------- images


def images(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    rows = [{"bytes": png((10 * n, 99, 5), size), "path": None} for n, size in enumerate(sizes)]
    return write_table(
        folder / "train.parquet", {"image": rows, "label": [n % 2 for n in range(len(sizes))]},
        {"image": {"_type": "Image"}},
    )  # fmt: skip


SIZES = [(20, 30), (16, 16), (40, 12), (33, 33), (9, 50), (16, 20)]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("settings", [
    {"size": {"height": 16, "width": 16}},
    {"do_resize": False},
    {"size": {"height": 32, "width": 32}},
    {"size": {"height": 16, "width": 16}, "do_normalize": False},
], ids=["fits", "no resizing", "another size", "no mean"])  # fmt: skip
def test_images_have_the_channels_and_the_size_of_the_model(
    tmp_path: Path, channels: int, settings: dict[str, Any]
) -> None:
    folder = tmp_path / "vit"
    config = transformers.ViTConfig(
        **pico.SMALL, intermediate_size=32, image_size=16, patch_size=8, num_channels=channels,
        num_labels=2,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(**settings).save_pretrained(folder)
    model = open_checkpoint(folder)
    data = ready(images(tmp_path / "set", SIZES), model)
    batch = next(data.train.epoch(0))
    assert batch["pixel_values"].shape == (4, channels, 16, 16)
    assert torch.isfinite(model.forward(model.module, batch)).all()
    check_fits(model, data, frozen=False)


def test_a_model_of_any_size_keeps_that_of_its_processor(tmp_path: Path) -> None:
    folder = tmp_path / "resnet"
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2, layer_type="basic"
    )
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    data = ready(images(tmp_path / "set", SIZES), open_checkpoint(folder))
    assert next(iter(data.test))["pixel_values"].shape[-2:] == (24, 24)


def test_transparent_images_keep_their_fourth_channel(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", in_chans=4, num_classes=2)
    folder = tmp_path / "timm"
    timm.models.save_for_hf(model, folder, safe_serialization=True, model_args={"in_chans": 4})
    (tmp_path / "set").mkdir()
    for number in range(6):
        Image.new("RGBA", (16, 16), (9, 9, 9, 40 * number)).save(tmp_path / "set" / f"{number}.png")
    data = ready(tmp_path / "set", open_checkpoint(folder))
    alphas = torch.cat([b["pixel_values"][:, 3, 0, 0] for b in data.train.epoch(0)])
    assert len(set(alphas.tolist())) == len(alphas)


@pytest.mark.parametrize("channels", [2, 6])
def test_models_of_other_channels_are_one_sentence(tmp_path: Path, channels: int) -> None:
    config = transformers.ViTConfig(
        **pico.SMALL, intermediate_size=32, image_size=16, patch_size=8, num_channels=channels
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(DataError, match=f"reads images of {channels} channels; image files give"):
        ready(images(tmp_path / "set", SIZES), open_checkpoint(tmp_path / "vit"))


class Refusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixels: torch.Tensor) -> Any:
        return [pixels * self.weight]


def test_a_model_that_gives_no_tensor_is_one_sentence_before_the_search(tmp_path: Path) -> None:
    model = replace(checkpoint("resnet20-cifar", 2), module=Refusing())
    data = ready(images(tmp_path, SIZES), model)
    with pytest.raises(DataError, match=r"cannot read .*pixel_values .* gave list where a tensor"):
        check_fits(model, data, frozen=False)


def test_a_batch_of_one_that_batch_norm_refuses_is_one_sentence(tmp_path: Path) -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model = replace(checkpoint("resnet20-cifar", 2), module=net.eval())
    data = ready(images(tmp_path, SIZES), model, batch_size=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(DataError, match="BatchNorm cannot learn from a batch of one example"):
        check_fits(model, data, frozen=False)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(child.training for child in net.modules())
    check_fits(model, data, frozen=True)


def test_a_model_that_fits_is_left_as_it_was(tmp_path: Path) -> None:
    model = checkpoint("resnet20-cifar", 2)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    check_fits(model, ready(images(tmp_path, SIZES), model, batch_size=1), frozen=False)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert PLAIN.held_out == 0.1


def test_statistics_are_measured_although_the_last_batch_has_one_example(tmp_path: Path) -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    batches = [torch.rand(4, 3, 8, 8), torch.rand(1, 3, 8, 8)]
    found = reestimate_batchnorm(net, batches, lambda module, batch: module(batch))
    alone = reestimate_batchnorm(net, batches[:1], lambda module, batch: module(batch))
    assert all(torch.equal(found[name], alone[name]) for name in found)
