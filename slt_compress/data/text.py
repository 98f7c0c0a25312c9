"""Text as model inputs: sentences, pairs or blocks of running text, as the task requires."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from slt_compress.data.labels import LabelMatch
from slt_compress.data.splits import Ready, accepted_of, cut, held_of, label_tensor, match_of
from slt_compress.data.text_examples import (
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
    from slt_compress.data.batches import Examples
    from slt_compress.data.raw import RawData

_RUNNING_TEXT = ("causal-lm", "masked-lm", "image-text-to-text")


def texts(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    """Examples of text: blocks for language models, pairs for sequence to sequence, or sentences.

    Raises:
        DataError: the checkpoint has no tokenizer, or it does not suit the model.
    """
    if checkpoint.task in _RUNNING_TEXT:
        return _blocks(raw, checkpoint, limit)
    make = _pairs if checkpoint.task == "seq2seq" else _sentences
    return make(raw, checkpoint, limit)


def _sentences(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    tokenizer = open_tokenizer(checkpoint)
    if checkpoint.task == "text-classification" and not _knows_padding(checkpoint):
        raise DataError(
            f"{checkpoint.source} has no pad token, so it cannot classify sentences of different "
            f"lengths in one batch; set one with --set model.pad_token_id="
            f"{tokenizer.pad_token_id}"
        )
    match = match_of(raw, checkpoint)
    encoder = _encoder(raw, checkpoint, tokenizer)
    tagged = checkpoint.task == "token-classification" and raw.columns.tags
    made: list[Examples] = []
    for split in cut(raw, limit):
        text = encoder(split=split)
        if tagged and match.matches:
            made.append(
                TagExamples(text=text, columns=raw.columns, ids=match.ids, names=raw.classes or ())
            )
        else:
            labels = label_tensor(split, match)
            made.append(SentenceExamples(text=text, columns=raw.columns, labels=labels))
    return Ready(train=made[0], held_out=made[1], test=made[2], match=match)


def _pairs(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    columns, encoder = raw.columns.inputs, _encoder(raw, checkpoint, open_tokenizer(checkpoint))
    train, held_out, test = (
        PairExamples(text=encoder(split=split), columns=columns) for split in cut(raw, limit)
    )
    notes = (
        () if len(columns) == 2 else (f"{raw.spec}: the target is a copy of column {columns[0]}.",)
    )
    match = LabelMatch(matches=True)
    return Ready(train=train, held_out=held_out, test=test, match=match, notes=notes)


def _encoder(raw: RawData, checkpoint: Checkpoint, tokenizer: Any) -> Callable[..., Encoder]:
    """An `Encoder` that only lacks its split."""
    return partial(
        Encoder,
        tokenizer=tokenizer,
        length=length_of(checkpoint, tokenizer, raw.options.max_length),
        accepted=accepted_of(checkpoint),
        vocabulary=vocabulary_of(checkpoint),
    )


def _blocks(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    """Blocks of running text; the last blocks of the training text are held out."""
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
            f"{len(test[0])} to measure on; use more text or a smaller data.max_length"
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
    config = text_config(checkpoint)
    # a config that does not speak of padding at all is of a model that does without
    return config.get("pad_token_id") is not None or "pad_token_id" not in config
