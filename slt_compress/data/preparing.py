"""Make a data set ready for one checkpoint: splits, preprocessing, labels, batches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from slt_compress.data.audio import sounds
from slt_compress.data.augment import timm_transform
from slt_compress.data.batches import Batches, Examples, SearchData
from slt_compress.data.image_text import captioned
from slt_compress.data.images import PictureExamples, pipeline_of
from slt_compress.data.labels import LabelMatch
from slt_compress.data.modalities import modalities_of
from slt_compress.data.splits import (
    Ready,
    accepted_of,
    cut,
    held_of,
    label_tensor,
    match_of,
)
from slt_compress.data.text import (
    BlockExamples,
    Encoder,
    PairExamples,
    SentenceExamples,
    TagExamples,
    blocks_of,
    mask_tokens,
    next_token,
)
from slt_compress.data.tokens import (
    check_ids,
    length_of,
    open_tokenizer,
    text_config,
    vocabulary_of,
)
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data.raw import RawData


_RUNNING_TEXT = ("causal-lm", "masked-lm", "image-text-to-text")
_WORDS = {"image": "images", "text": "texts", "audio": "sounds", "image-text": "images with texts"}


def prepare(
    raw: RawData, checkpoint: Checkpoint, *, batch_size: int, seed: int, limit: int | None = None
) -> SearchData:
    """Preprocess as the checkpoint says and cut into seeded batches.

    Args:
        raw: the data set.
        checkpoint: the model, whose folder holds its tokenizer or image processor.
        batch_size: examples in a batch.
        seed: of the order of the training batches; the splits do not depend on it.
        limit: the most test examples, chosen by a fixed seed (the first blocks for text).

    Raises:
        DataError: the data does not suit the task, or a tokenizer or processor is missing.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(f"batch size {batch_size} and evaluation.limit {limit} must be at least 1")
    ready = _maker(raw, checkpoint)(raw, checkpoint, limit)
    held_out = Batches(source=ready.held_out, batch_size=batch_size, seed=seed)
    test = Batches(source=ready.test, batch_size=batch_size, seed=seed)
    train = Batches(
        source=ready.train, augmented=ready.augmented, batch_size=batch_size, seed=seed,
        shuffle=True,
    )  # fmt: skip
    return SearchData(
        spec=raw.spec,
        train=train,
        held_out=held_out,
        test=test,
        labels_match=ready.match.matches,
        label_note=ready.match.note,
        test_split=raw.test_split,
        splits={
            "train": train.examples,
            "held_out": held_out.examples,
            "test": test.examples,
        },
        notes=(*raw.notes, *ready.notes),
    )


def _maker(
    raw: RawData, checkpoint: Checkpoint
) -> Callable[[RawData, Checkpoint, int | None], Ready]:
    """The function that makes the examples of this task, once the data is seen to suit it."""
    readable = modalities_of(checkpoint)
    found = next((kind for kind in readable if kind in raw.columns.modalities), None)
    if found is None:
        wanted = _WORDS[readable[0]]
        names = " and ".join(f"data.{key}=COLUMN" for key in readable[0].split("-"))
        raise DataError(
            f"{checkpoint.source} reads {wanted} and {raw.spec} holds {_WORDS[raw.modality]} "
            f"(column {', '.join(raw.columns.inputs)}); choose another --dataset or name the "
            f"column with --set {names}"
        )
    if found == "text" and checkpoint.task in _RUNNING_TEXT:
        return _blocks
    if found == "text":
        return _pairs if checkpoint.task == "seq2seq" else _sentences
    return {"image": _pictures, "audio": sounds, "image-text": captioned}[found]


def _pictures(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    pipeline = pipeline_of(checkpoint)
    match = match_of(raw, checkpoint)
    augment = raw.options.augment
    if augment.timm:  # a wrong option is seen before anything is searched
        timm_transform(augment.timm, pipeline.size, pipeline.mean, pipeline.std)
    train, held_out, test = (
        PictureExamples(
            split=split,
            column=raw.columns.inputs[0],
            pipeline=pipeline,
            labels=label_tensor(split, match),
            spec=raw.spec,
        )
        for split in cut(raw, limit)
    )
    changed = replace(train, augment=augment) if augment.changes else None
    notes = (pipeline.note,) if pipeline.note else ()
    return Ready(
        train=train, held_out=held_out, test=test, match=match, notes=notes, augmented=changed
    )


def _sentences(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    tokenizer = open_tokenizer(checkpoint)
    if checkpoint.task == "text-classification" and not _knows_padding(checkpoint):
        raise DataError(
            f"{checkpoint.source} has no pad token, so it cannot classify sentences of different "
            f"lengths in one batch; give it one with --set model.pad_token_id="
            f"{tokenizer.pad_token_id}"
        )
    match = match_of(raw, checkpoint)
    encoder = _encoder(raw, checkpoint, tokenizer)
    tagged = checkpoint.task == "token-classification" and raw.columns.tags
    made: list[Examples] = []
    for split in cut(raw, limit):
        text = encoder(split=split)
        if tagged and match.matches:
            made.append(TagExamples(text=text, columns=raw.columns, ids=match.ids))
        else:
            labels = label_tensor(split, match)
            made.append(SentenceExamples(text=text, columns=raw.columns, labels=labels))
    return Ready(train=made[0], held_out=made[1], test=made[2], match=match)


def _pairs(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    columns, encoder = raw.columns.inputs, _encoder(raw, checkpoint, open_tokenizer(checkpoint))
    train, held_out, test = (
        PairExamples(text=encoder(split=split), columns=columns) for split in cut(raw, limit)
    )
    notes = () if len(columns) == 2 else (f"{raw.spec}: the model is to copy column {columns[0]}.",)
    match = LabelMatch(matches=True)
    return Ready(train=train, held_out=held_out, test=test, match=match, notes=notes)


def _encoder(raw: RawData, checkpoint: Checkpoint, tokenizer: Any) -> Callable[..., Encoder]:
    """An `Encoder` that only wants its split."""
    return partial(
        Encoder,
        tokenizer=tokenizer,
        length=length_of(checkpoint, tokenizer, raw.options.max_length),
        accepted=accepted_of(checkpoint),
        vocabulary=vocabulary_of(checkpoint),
    )


def _blocks(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    """Blocks of running text; the held-out ones are the last of the training text."""
    options, tokenizer = raw.options, open_tokenizer(checkpoint)
    length = length_of(checkpoint, tokenizer, options.max_length)
    masked = checkpoint.task == "masked-lm"
    vocabulary = vocabulary_of(checkpoint)
    finish = mask_tokens(tokenizer, vocabulary, checkpoint.source) if masked else next_token
    wanted = options.limit_train
    if wanted is not None:
        wanted += held_of(options, wanted)
    make = partial(
        blocks_of, column=raw.columns.inputs[0], tokenizer=tokenizer, length=length, masked=masked
    )
    ids, sizes = make(raw.splits["train"], limit=wanted)
    test = make(raw.splits["test"], limit=limit)
    if len(ids) < 2 or not len(test[0]):
        raise DataError(
            f"{raw.spec} gives {len(ids)} blocks of {length} tokens to search on and "
            f"{len(test[0])} to measure on; give more text or a smaller data.max_length"
        )
    check_ids(ids, vocabulary)
    check_ids(test[0], vocabulary)
    held = min(held_of(options, options.limit_train or len(ids)), len(ids) - 1)
    parts = ((ids[:-held], sizes[:-held]), (ids[-held:], sizes[-held:]), test)
    accepted = accepted_of(checkpoint)
    made = [BlockExamples(ids=i, sizes=s, finish=finish, accepted=accepted) for i, s in parts]
    note = f"{raw.spec}: text is read in blocks of {length} tokens, each on its own."
    match = LabelMatch(matches=True)
    return Ready(train=made[0], held_out=made[1], test=made[2], match=match, notes=(note,))


def _knows_padding(checkpoint: Checkpoint) -> bool:
    return text_config(checkpoint).get("pad_token_id") is not None
