"""Text: sentences, pairs, tags and blocks, as a tokenizer and a model want them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from data_sets import PLAIN, ready, write_table
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from slt_compress.checkpoints import Checkpoint, Task, open_checkpoint
from slt_compress.data import DataOptions
from slt_compress.errors import DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(95))]
PAD, CLS, SEP, MASK, FIRST = 0, 2, 3, 4, 5
SPECIAL = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SIZES = {
    "vocab_size": 100,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}


def save_tokenizer(folder: Path, special: dict[str, str]) -> None:
    """One token a word: w0 is id 5, w1 is id 6 and so on."""
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inputs = ["input_ids", "attention_mask"]
    if "cls_token" in special:
        inputs.append("token_type_ids")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", model_input_names=inputs, **special
    ).save_pretrained(folder)


def bert(folder: Path, task: Task, labels: int = 2) -> Checkpoint:
    config = transformers.BertConfig(**SIZES, max_position_embeddings=32, num_labels=labels)
    config.save_pretrained(folder)
    save_tokenizer(folder, SPECIAL)
    return open_checkpoint(folder, init="signed-constant", num_classes=labels, task=task)


def gpt2(folder: Path, task: Task = "causal-lm", context: int = 16) -> Checkpoint:
    config = transformers.GPT2Config(
        vocab_size=100, n_embd=8, n_layer=1, n_head=1, n_positions=context,
        bos_token_id=SEP, eos_token_id=SEP,
    )  # fmt: skip
    config.save_pretrained(folder)
    save_tokenizer(folder, {"eos_token": "[SEP]"})
    return open_checkpoint(folder, init="signed-constant", num_classes=2, task=task)


def sentences(folder: Path, label: list[float] | list[int], **columns: list[str]) -> Path:
    for split in ("train", "test"):
        write_table(folder / f"{split}.parquet", {**columns, "label": label})
    return folder


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Train: the words 0..94 over and over, 320 of them, in rows of 20; test: 25 words."""
    rows = [words(*((20 * row + n) % 95 for n in range(20))) + "\n" for row in range(16)]
    write_table(tmp_path / "corpus" / "train.parquet", {"text": rows})
    write_table(tmp_path / "corpus" / "test.parquet", {"text": ["", words(*range(25))]})
    return tmp_path / "corpus"


def test_sentences(tmp_path: Path) -> None:
    texts = [words(0), words(1, 2, 3), words(4, 5), words(*range(60))]
    model = bert(tmp_path / "bert", "text-classification")
    data = ready(sentences(tmp_path / "set", [0, 1, 1, 0], sentence=texts), model)
    assert data.test is not None
    batch = next(iter(data.test))
    assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == (4, 32)  # cut at the model's context
    assert batch["input_ids"][1, :6].tolist() == [CLS, FIRST + 1, FIRST + 2, FIRST + 3, SEP, PAD]
    assert batch["attention_mask"].sum(1).tolist() == [3, 5, 4, 32]
    assert batch["labels"].tolist() == [0, 1, 1, 0]
    assert model.module(**batch).logits.shape == (4, 2)


def test_pairs_and_regression(tmp_path: Path) -> None:
    left, right = [words(n) for n in range(4)], [words(n, n) for n in range(4)]
    folder = sentences(tmp_path / "set", [0.5, 5.0, 2.5, 0.0], sentence1=left, sentence2=right)
    model = bert(tmp_path / "bert", "text-classification", labels=1)
    data = ready(folder, model)
    assert data.labels_match
    assert data.test is not None
    batch = next(iter(data.test))
    assert batch["labels"].dtype is torch.float32
    assert batch["labels"].tolist() == [0.5, 5.0, 2.5, 0.0]
    assert batch["input_ids"][2].tolist() == [CLS, FIRST + 2, SEP, FIRST + 2, FIRST + 2, SEP]
    assert batch["token_type_ids"][2].tolist() == [0, 0, 0, 1, 1, 1]
    two = ready(folder, bert(tmp_path / "two", "text-classification", labels=2))
    assert not two.labels_match
    assert "labels are numbers and the model has 2 outputs" in two.label_note


def test_words_with_tags(tmp_path: Path) -> None:
    features = {
        "tokens": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        "ner_tags": {"feature": {"names": ["O", "B"], "_type": "ClassLabel"}, "_type": "List"},
    }
    rows = {"tokens": [["w1", "w2 w3", "w4"], ["w5"]], "ner_tags": [[0, 1, 0], [1]]}
    for split in ("train", "test"):
        write_table(tmp_path / "set" / f"{split}.parquet", rows, features)
    model = bert(tmp_path / "bert", "token-classification")
    data = ready(tmp_path / "set", model)
    assert data.test is not None
    batch = next(iter(data.test))
    assert batch["labels"].tolist() == [[-100, 0, 1, -100, 0, -100], [-100, 1, *[-100] * 4]]
    assert torch.isfinite(model.module(**batch).loss)


def test_blocks_are_the_running_text(corpus: Path, tmp_path: Path) -> None:
    model = gpt2(tmp_path / "gpt2")
    data = ready(corpus, model)
    # 320 words are 20 blocks of the model's 16; the last 2 are held out.
    assert data.splits == {"train": 18, "held_out": 2, "test": 2}
    stream = torch.cat(
        [batch["input_ids"] for part in (data.train, data.held_out) for batch in part]
    )
    assert stream.flatten().tolist() == [FIRST + n % 95 for n in range(320)]
    assert data.test is not None
    batch = next(iter(data.test))
    assert batch["input_ids"].flatten()[:25].tolist() == list(range(FIRST, FIRST + 25))
    assert batch["attention_mask"].sum(1).tolist() == [16, 9]
    assert batch["labels"][1].tolist() == [*range(FIRST + 16, FIRST + 25), *[-100] * 7]
    loss = model.module(**batch).loss
    logits = model.module(**{k: v for k, v in batch.items() if k != "labels"}).logits
    kept = batch["labels"][:, 1:] != -100
    own = torch.nn.functional.cross_entropy(logits[:, :-1][kept], batch["labels"][:, 1:][kept])
    assert loss.item() == pytest.approx(own.item(), rel=1e-5)


def test_limits_and_lengths_of_blocks(corpus: Path, tmp_path: Path) -> None:
    model = gpt2(tmp_path / "gpt2", context=64)
    data = ready(corpus, model, DataOptions(limit_train=5, max_length=8), limit=3)
    assert data.splits == {"train": 5, "held_out": 1, "test": 3}
    assert next(data.train.epoch(0))["input_ids"].shape == (4, 8)
    with pytest.raises(DataError, match=r"data\.max_length is 65 tokens and .* at most 64"):
        ready(corpus, model, DataOptions(max_length=65))
    with pytest.raises(DataError, match=r"gives 0 blocks of 32 tokens .* 1 to measure on"):
        ready(corpus / "test.parquet", model, DataOptions(max_length=32))


def test_masked_blocks(corpus: Path, tmp_path: Path) -> None:
    model = bert(tmp_path / "bert", "masked-lm")
    data = ready(corpus, model, batch_size=10)
    first, again = (list(data.train.epoch(0)) for _ in range(2))
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, again, strict=True) for key in a)
    batch = first[0]
    hidden = batch["labels"] != -100
    assert (hidden.sum(1) >= 1).all()
    assert not hidden[:, 0].any()  # [CLS] and [SEP] stay
    assert (batch["input_ids"][:, 0] == CLS).all()
    assert torch.equal(batch["input_ids"][~hidden] == MASK, torch.zeros_like(hidden[~hidden]))
    assert torch.isfinite(model.module(**batch).loss)
    # The draws of an epoch are its own; those of a measurement never change.
    other = next(data.train.epoch(1))
    assert not torch.equal(other["labels"] != -100, hidden)
    held = [next(iter(data.held_out)) for _ in range(2)]
    assert torch.equal(held[0]["labels"], held[1]["labels"])


def test_share_of_masked_tokens(tmp_path: Path) -> None:
    text = [words(*((7 * row + n) % 95 for n in range(30))) for row in range(400)]
    for split in ("train", "test"):
        write_table(tmp_path / "set" / f"{split}.parquet", {"text": text})
    data = ready(tmp_path / "set", bert(tmp_path / "bert", "masked-lm"), batch_size=100)
    batches = list(data.train.epoch(0))
    ids, labels = (torch.cat([b[key] for b in batches]) for key in ("input_ids", "labels"))
    chosen = labels != -100
    tokens = ids.numel() * 30 / 32  # but for [CLS] and [SEP]
    assert chosen.sum().item() / tokens == pytest.approx(0.15, abs=0.02)
    assert (ids[chosen] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.04)
    assert (ids[chosen] == labels[chosen]).float().mean().item() == pytest.approx(0.1, abs=0.04)


def test_sequence_to_sequence(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=100, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        pad_token_id=PAD, eos_token_id=SEP, decoder_start_token_id=PAD,
    )  # fmt: skip
    config.architectures = ["T5ForConditionalGeneration"]
    config.save_pretrained(tmp_path / "t5")
    save_tokenizer(tmp_path / "t5", {"pad_token": "[PAD]", "eos_token": "[SEP]"})
    model = open_checkpoint(tmp_path / "t5", init="signed-constant")
    rows = {"a": [words(n) for n in range(8)], "b": [words(n, n, n) for n in range(7)] + ["w1"]}
    for split in ("train", "test"):
        write_table(tmp_path / "set" / f"{split}.parquet", rows)
    data = ready(tmp_path / "set", model, DataOptions(text=("a", "b")), batch_size=8)
    assert data.test is not None
    batch = next(iter(data.test))
    assert batch["input_ids"][3].tolist() == [FIRST + 3]
    assert batch["labels"][[3, 7]].tolist() == [[FIRST + 3] * 3, [FIRST + 1, -100, -100]]
    assert torch.isfinite(model.module(**batch).loss)
    copied = ready(tmp_path / "set", model, DataOptions(text=("b",)), batch_size=8)
    assert copied.test is not None
    batch = next(iter(copied.test))
    assert batch["labels"].masked_fill(batch["labels"] == -100, PAD).equal(batch["input_ids"])
    assert any("copy of column b" in note for note in copied.notes)


def test_features_carry_no_labels(tmp_path: Path) -> None:
    model = bert(tmp_path / "bert", "features")
    data = ready(
        sentences(tmp_path / "set", [0, 1, 1, 0], text=[words(n) for n in range(4)]), model
    )
    assert not data.labels_match
    assert "no head" in data.label_note
    assert "labels" not in next(data.train.epoch(0))


def test_what_does_not_fit_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = gpt2(tmp_path / "gpt2")
    with pytest.raises(DataError, match=r"reads texts and digits holds images"):
        ready("digits", model)
    with pytest.raises(DataError, match=r"reads images and .* holds texts"):
        ready(corpus, open_checkpoint("lenet-300-100", init="signed-constant"))
    classifier = gpt2(tmp_path / "two", "text-classification")
    folder = sentences(tmp_path / "set", [0, 1, 1, 0], text=[words(n) for n in range(4)])
    with pytest.raises(DataError, match=rf"no pad token.*--set model\.pad_token_id={SEP}"):
        ready(folder, classifier)
    bare = bert(tmp_path / "bert", "masked-lm")
    save_tokenizer(tmp_path / "bert", {"pad_token": "[PAD]"})
    with pytest.raises(DataError, match="has no mask token"):
        ready(corpus, bare)


def test_missing_damaged_or_foreign_tokenizer(corpus: Path, tmp_path: Path) -> None:
    model = gpt2(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer in .* cannot be used"):
        ready(corpus, model)
    (tmp_path / "gpt2" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"has no tokenizer \(tokenizer\.json"):
        ready(corpus, model)
    save_tokenizer(tmp_path / "gpt2", {"eos_token": "[SEP]"})
    small = transformers.GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=1, n_positions=16)
    small.save_pretrained(tmp_path / "gpt2")
    model = open_checkpoint(tmp_path / "gpt2", init="signed-constant", task="causal-lm")
    with pytest.raises(DataError, match="token id 99 and the model knows 50 tokens"):
        ready(corpus, model, PLAIN)
