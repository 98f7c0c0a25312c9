"""Sound, and images with text, through the whole path, as each family's processor wants them."""

from __future__ import annotations

import builtins
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import soundfile
import torch
from data_sets import ready, write_table
from pipelines import check_whole_path, short

import slt_compress
from slt_compress.checkpoints import open_checkpoint, sketch_checkpoint
from slt_compress.checkpoints.tasks import forward_of, rows
from slt_compress.data import DataOptions, modalities_of, open_data
from slt_compress.data.audio import open_sound
from slt_compress.errors import DataError

TOLD = DataOptions(image="image", text=("question", "answer"))
CAPTION, QUESTION = DataOptions(text=("caption",)), DataOptions(text=("question",), label="answer")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {
        "sounds": pico.save_sounds(root / "sounds"),
        "captions": pico.save_captions(root / "captions"),
    }


PATHS: list[tuple[str, str, dict[str, Any], str]] = [
    ("wav2vec2", "sounds", {}, "accuracy"),
    ("ast", "sounds", {}, "accuracy"),
    ("clip", "captions", {"text": ["caption"]}, "accuracy"),
    ("vilt", "captions", {"text": ["question"], "label": "answer"}, "accuracy"),
    ("llava", "captions", {"image": "image", "text": ["question", "answer"]}, "perplexity"),
]


# Weight norm computes this weight, and a dense export of transformers cannot hold it masked.
EXCLUDED = {"wav2vec2": ["*pos_conv_embed*"]}


@pytest.mark.parametrize(("name", "kind", "options", "metric"), PATHS)
def test_the_whole_path(
    name: str, kind: str, options: dict[str, Any], metric: str, data: dict[str, Path],
    tmp_path: Path,
) -> None:  # fmt: skip
    source = getattr(pico, f"save_{name}")(tmp_path / "origin")
    recipe = short(data=options, targets={"exclude": EXCLUDED.get(name, [])})
    ticket = slt_compress.search(source, str(data[kind]), recipe=recipe, out=tmp_path / "ticket")
    report = check_whole_path(ticket, tmp_path)
    assert metric in report.metrics["hard"]
    assert (
        slt_compress.evaluate(ticket.path)["metrics"].items()
        <= dict(report.metrics["hard"]).items()
    )


def test_a_random_init_takes_the_classes_of_the_sounds(
    data: dict[str, Path], tmp_path: Path
) -> None:
    source = pico.save_wav2vec2(tmp_path / "origin", ["one", "two"])
    ticket = slt_compress.search(
        source, str(data["sounds"]), recipe=short(init="random"), out=tmp_path / "ticket"
    )
    assert "accuracy" in slt_compress.report(ticket.path).metrics["hard"]
    opened = slt_compress.load(ticket.path)
    assert opened.config.num_labels == 3


def test_sounds_are_resampled_mixed_and_cut() -> None:
    tone = {"bytes": pico.wave(440.0, 0.5, 8_000, 2), "path": None}
    found = open_sound(tone, 16_000, 0.25, "here")
    assert found.dtype == np.float32
    assert found.shape == (4_000,)
    time = np.arange(4_000) / 16_000
    middle = slice(500, 3_500)  # the resampler's filter rings at the ends
    wanted = 0.5 * np.sin(2 * np.pi * 440.0 * time)
    assert np.abs(found - wanted)[middle].max() < 0.01


def test_channels_are_averaged() -> None:
    out = io.BytesIO()
    soundfile.write(out, np.array([[0.5, -0.25]] * 4_000), 16_000, format="WAV", subtype="FLOAT")
    found = open_sound({"bytes": out.getvalue(), "path": None}, 16_000, 1.0, "here")
    assert np.allclose(found, 0.125)


def test_short_sounds_get_silence() -> None:
    found = open_sound({"bytes": pico.wave(440.0, 0.01), "path": None}, 16_000, 1.0, "here")
    assert found.shape == (1_600,)
    assert not found[160:].any()


@pytest.mark.parametrize("stored", [None, {"bytes": b"nothing", "path": None}, {"path": "/no"}])
def test_a_damaged_sound_is_refused(stored: object) -> None:
    with pytest.raises(DataError, match="a sound cannot be decoded"):
        open_sound(stored, 16_000, 1.0, "here")


def test_without_the_extra_sound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def without(name: str, *rest: Any, **how: Any) -> Any:
        if name == "soxr":
            raise ImportError(name)
        return plain(name, *rest, **how)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"pip install 'slt-compress\[audio\]'"):
        open_sound(None, 16_000, 1.0, "here")


def test_a_column_called_audio_needs_no_declared_type(tmp_path: Path) -> None:
    sounds = [{"bytes": pico.wave(440.0), "path": None}] * 4
    write_table(tmp_path / "train.parquet", {"audio": sounds, "text": list("abcd")})
    assert open_data(str(tmp_path), DataOptions()).modality == "audio"
    assert open_data(str(tmp_path), DataOptions(text=("text",))).modality == "text"
    assert open_data(str(tmp_path), DataOptions(audio="audio")).columns.inputs == ("audio",)
    with pytest.raises(DataError, match=r"data\.audio=text names a column of kind text"):
        open_data(str(tmp_path), DataOptions(audio="text"))


def test_images_and_texts_find_each_other(data: dict[str, Path], tmp_path: Path) -> None:
    model = open_checkpoint(pico.save_clip(tmp_path))
    assert (model.task, modalities_of(model)) == ("zero-shot-image-classification", ("image-text",))
    batch = next(iter(ready(data["captions"], model, CAPTION).test))
    assert batch["input_ids"].shape == (4, 32)  # the length of the model, not of the texts
    assert batch["labels"].tolist() == [0, 1, 2, 3] * 2
    found = forward_of("transformers", model.task)(model.module, batch)
    output = model.module(**{k: v for k, v in batch.items() if k != "labels"})
    assert torch.equal(found[:4], output.logits_per_image)
    assert torch.equal(found[4:], output.logits_per_image.T)
    # transformers' own loss of such a model is the mean of ours over images and texts
    logits, labels = rows(model.task, found, batch["labels"])
    own = model.module(**{k: v for k, v in batch.items() if k != "labels"}, return_loss=True).loss
    assert torch.allclose(torch.nn.functional.cross_entropy(logits, labels), own, atol=1e-6)


def test_a_text_that_is_there_twice_is_found_once(data: dict[str, Path], tmp_path: Path) -> None:
    model = open_checkpoint(pico.save_clip(tmp_path))
    asked = DataOptions(text=("answer",))
    batch = next(iter(ready(data["captions"], model, asked).test))
    assert batch["labels"].tolist() == [0, 1, 0, 1, 0, 1, 2, 3]


def test_only_the_answer_is_to_be_told(data: dict[str, Path], tmp_path: Path) -> None:
    model = open_checkpoint(pico.save_llava(tmp_path))
    assert (model.task, modalities_of(model)) == ("image-text-to-text", ("image-text", "text"))
    batch = next(iter(ready(data["captions"], model, TOLD).test))
    told = batch["labels"] != -100
    assert told.sum(1).tolist() == [2, 2, 2, 2]  # the answer and the end token
    assert torch.equal(batch["labels"][told], batch["input_ids"][told])
    assert (batch["input_ids"][told].view(4, 2) == torch.tensor([1, 5])).all()
    # four tokens stand for each image, and none of them is a label
    assert ((batch["input_ids"] == model.module.config.image_token_id).sum(1) == 4).all()


def test_long_texts_are_cut_and_images_are_not(data: dict[str, Path], tmp_path: Path) -> None:
    model = open_checkpoint(pico.save_llava(tmp_path))
    asked = DataOptions(image="image", text=("caption",), max_length=4)
    batch = next(iter(ready(data["captions"], model, asked).test))
    assert (batch["labels"] != -100).sum(1).tolist() == [5, 5, 5, 5]
    assert ((batch["input_ids"] == model.module.config.image_token_id).sum(1) == 4).all()


def test_a_model_of_both_is_fed_text_alone_where_there_is_no_image(tmp_path: Path) -> None:
    model = open_checkpoint(pico.save_llava(tmp_path / "model"))
    data = ready(pico.save_prose(tmp_path / "prose"), model)
    assert set(next(iter(data.test))) == {"input_ids", "attention_mask", "labels"}


def test_what_is_missing_is_said(data: dict[str, Path], tmp_path: Path) -> None:
    clip = open_checkpoint(pico.save_clip(tmp_path / "clip"))
    with pytest.raises(DataError, match=r"reads images with texts and .* holds sounds"):
        ready(data["sounds"], clip)
    with pytest.raises(DataError, match="reads images with texts and digits holds images"):
        ready("digits", clip)
    sounding = open_checkpoint(pico.save_wav2vec2(tmp_path / "wav2vec2"))
    with pytest.raises(DataError, match=r"reads sounds and .* holds images"):
        ready(data["captions"], sounding)
    (tmp_path / "wav2vec2" / "preprocessor_config.json").unlink()
    with pytest.raises(DataError, match=r"has no preprocessor_config\.json"):
        ready(data["sounds"], sounding)
    for file in (tmp_path / "clip").glob("*processor*"):
        file.unlink()
    with pytest.raises(DataError, match="has no processor"):
        ready(data["captions"], clip, CAPTION)


@pytest.mark.parametrize(
    ("kind", "architecture", "task", "read"),
    [
        ("clip", "CLIPModel", "zero-shot-image-classification", ("image-text",)),
        ("siglip", "SiglipModel", "zero-shot-image-classification", ("image-text",)),
        ("vilt", "ViltForQuestionAnswering", "visual-question-answering", ("image-text",)),
        ("llava", "LlavaForConditionalGeneration", "image-text-to-text", ("image-text", "text")),
        ("hubert", "HubertForSequenceClassification", "audio-classification", ("audio",)),
        ("hubert", "HubertModel", "features", ("audio",)),
        ("whisper", "WhisperForAudioClassification", "audio-classification", ("audio",)),
        ("gpt2", "GPT2LMHeadModel", "causal-lm", ("text",)),
    ],
)
def test_how_families_are_fed(
    kind: str, architecture: str, task: str, read: tuple[str, ...], tmp_path: Path
) -> None:
    config = {"model_type": kind, "architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sketch = sketch_checkpoint(tmp_path)
    assert (sketch.task, modalities_of(sketch)) == (task, read)
