"""Pico checkpoints with everything a real one has beside it, and data sets for them, on disk."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import timm
import torch
import transformers
from data_sets import image_table, png, write_table
from timm.models import save_for_hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ViTImageProcessor

WORDS = (
    "the", "a", "cat", "dog", "newt", "runs", "sleeps", "eats", "good", "bad", "film", "was",
    "very", "not", "and", "in", "on", "it",
)  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[END]")
CLASSES = ["cat", "dog", "newt"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"vocab_size": 32, "max_position_embeddings": 32, "pad_token_id": 0}
DECODER = {**SMALL, **TEXT, "intermediate_size": 32, "num_key_value_heads": 1}
END = {"bos_token_id": 5, "eos_token_id": 5}


def save_vit(folder: Path, classes: list[str] = CLASSES) -> Path:
    config = transformers.ViTConfig(
        **SMALL,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    _save(transformers.ViTForImageClassification, config, folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_bert(folder: Path, **changes: object) -> Path:
    config = transformers.BertConfig(
        **SMALL, **TEXT, intermediate_size=32, **{"num_labels": 2, **changes}
    )
    _save(transformers.BertForSequenceClassification, config, folder)
    return save_tokenizer(folder)


def save_gpt2(folder: Path) -> Path:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=32, vocab_size=32, **END
    )
    _save(transformers.GPT2LMHeadModel, config, folder)
    return save_tokenizer(folder)


def save_llama(folder: Path, length: int = 32) -> Path:
    config = transformers.LlamaConfig(**{**DECODER, "max_position_embeddings": length}, **END)
    _save(transformers.LlamaForCausalLM, config, folder)
    return save_tokenizer(folder)


def save_mixtral(folder: Path) -> Path:
    config = transformers.MixtralConfig(**DECODER, **END, num_local_experts=3)
    _save(transformers.MixtralForCausalLM, config, folder)
    return save_tokenizer(folder)


def save_wav2vec2(folder: Path, classes: list[str] = CLASSES) -> Path:
    config = transformers.Wav2Vec2Config(
        **SMALL, intermediate_size=32, vocab_size=32, conv_dim=(16, 16), conv_kernel=(10, 4),
        conv_stride=(5, 4), num_feat_extract_layers=2, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=4, classifier_proj_size=16, mask_time_prob=0.0,
        layerdrop=0.0, id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )  # fmt: skip
    _save(transformers.Wav2Vec2ForSequenceClassification, config, folder)
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return folder


def save_ast(folder: Path) -> Path:
    """A net on spectrograms, whose extractor pads by itself."""
    config = transformers.ASTConfig(
        **SMALL, intermediate_size=32, max_length=32, num_mel_bins=16, patch_size=8,
        time_stride=8, frequency_stride=8, id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip
    _save(transformers.ASTForAudioClassification, config, folder)
    transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=32).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    config = transformers.CLIPConfig(
        text_config={**SMALL, **TEXT, "intermediate_size": 32, "eos_token_id": 3},
        vision_config={**SMALL, "intermediate_size": 32, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    _save(transformers.CLIPModel, config, folder)
    return _save_processor(transformers.CLIPProcessor, folder)


def save_vilt(folder: Path) -> Path:
    config = transformers.ViltConfig(
        **SMALL, **TEXT, intermediate_size=32, image_size=16, patch_size=8,
        id2label={0: "no", 1: "yes"}, max_image_length=-1,
    )  # fmt: skip
    _save(transformers.ViltForQuestionAnswering, config, folder)
    pictures = transformers.ViltImageProcessor(size={"shortest_edge": 16}, size_divisor=8)
    save_tokenizer(folder)
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    transformers.ViltProcessor(pictures, words).save_pretrained(folder)
    return folder


def save_llava(folder: Path) -> Path:
    """A language model that is shown pictures, each of which stands for four tokens."""
    vision = {**SMALL, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**DECODER, **END),
        vision_config=transformers.CLIPVisionConfig(**vision),
        image_token_id=len(SPECIAL) + len(WORDS), vision_feature_layer=-1,
    )  # fmt: skip
    _save(transformers.LlavaForConditionalGeneration, config, folder)
    return _save_processor(
        transformers.LlavaProcessor, folder, image_token="<image>", patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def _save_processor(kind: type, folder: Path, **how: object) -> Path:
    size = {"height": 16, "width": 16}
    pictures = transformers.CLIPImageProcessor(size=size, crop_size=size)
    save_tokenizer(folder)
    words = PreTrainedTokenizerFast.from_pretrained(folder)
    words.add_tokens(["<image>"], special_tokens=True)
    kind(image_processor=pictures, tokenizer=words, **how).save_pretrained(folder)
    return folder


def save_timm(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    settings = {"label_names": CLASSES}
    save_for_hf(model, str(folder), model_config=settings, safe_serialization=True)
    return folder


def _save(kind: type, config: object, folder: Path) -> None:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Pico\n")


def save_tokenizer(folder: Path) -> Path:
    """A tokenizer of whole words that frames sentences as BERT does."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        eos_token="[END]",
    ).save_pretrained(folder)
    return folder


def sentence(number: int) -> str:
    """One of many short sentences, the same for the same number."""
    return " ".join(WORDS[(number * 7 + place * place * 3) % len(WORDS)] for place in range(6))


def save_pictures(folder: Path, classes: list[str] = CLASSES) -> Path:
    image_table(folder / "train.parquet", 24, classes)
    image_table(folder / "test.parquet", 9, classes, start=100)
    return folder


def save_reviews(folder: Path) -> Path:
    """Sentences with one of two labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 24), ("test", 8)):
        rows = [f"{sentence(i)},{'good' if i % 2 else 'bad'}" for i in range(count)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


def save_scores(folder: Path) -> Path:
    """Pairs of sentences with a number."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 24), ("test", 8)):
        rows = [f"{sentence(i)},{sentence(i + 3)},{i % 5 / 2}" for i in range(count)]
        head = "sentence1,sentence2,label"
        (folder / f"{split}.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def save_prose(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 100), ("test", 20)):
        lines = [f"{sentence(i)} ." for i in range(count)]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return folder


def wave(pitch: float, seconds: float = 0.2, rate: int = 16_000, channels: int = 1) -> bytes:
    """A tone as the bytes of a WAV file."""
    time = np.arange(int(seconds * rate)) / rate
    tone = 0.5 * np.sin(2 * np.pi * pitch * time)
    out = io.BytesIO()
    soundfile.write(out, np.repeat(tone[:, None], channels, axis=1), rate, format="WAV")
    return out.getvalue()


def save_sounds(folder: Path, classes: list[str] = CLASSES) -> Path:
    """Tones of three pitches, some of which are longer, or at another rate in two channels."""
    features = {"audio": {"_type": "Audio"}, "label": {"_type": "ClassLabel", "names": classes}}
    for split, count in (("train", 18), ("test", 6)):
        sounds = [
            wave(200.0 * (1 + i % 3), 0.15 + 0.01 * (i % 4), 16_000 if i % 2 else 8_000, 1 + i % 2)
            for i in range(count)
        ]
        columns = {
            "audio": [{"bytes": sound, "path": None} for sound in sounds],
            "label": [i % 3 for i in range(count)],
        }
        write_table(folder / f"{split}.parquet", columns, features)
    return folder


def save_captions(folder: Path) -> Path:
    """Pictures with a text, and with a question whose answer is yes or no."""
    for split, count in (("train", 18), ("test", 6)):
        pictures = [png((10 * i, 255 - 10 * i, 99), (20 + i, 24)) for i in range(count)]
        columns = {
            "image": [{"bytes": picture, "path": None} for picture in pictures],
            "caption": [sentence(i) for i in range(count)],
            "question": [f"was the {'cat' if i % 2 else 'dog'} good" for i in range(count)],
            "answer": ["yes" if i % 2 else "no" for i in range(count)],
        }
        write_table(folder / f"{split}.parquet", columns)
    return folder
