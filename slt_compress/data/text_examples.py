"""Batches of text: sentences with a label, words with tags, pairs, and blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from slt_compress.checkpoints.quiet import quiet
from slt_compress.data.token_rows import without_empty_rows_, words_of
from slt_compress.data.tokens import check_ids
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slt_compress.data.batches import Batch
    from slt_compress.data.columns import Columns
    from slt_compress.data.raw import Split

IGNORED = -100
"""The label that every loss of transformers leaves out."""
MASKED_SHARE = 0.15
CHUNK_ROWS = 1_000
Ids = npt.NDArray[np.int64]
_NOTHING: Ids = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The texts of a split as token ids.

    Attributes:
        split: the rows.
        tokenizer: the checkpoint's tokenizer.
        length: longer examples are cut to this many tokens.
        accepted: names of the model's arguments.
        vocabulary: how many token ids the model knows, None if unknown.
    """

    split: Split
    tokenizer: Any = field(repr=False)
    length: int
    accepted: frozenset[str]
    vocabulary: int | None

    def __len__(self) -> int:
        return len(self.split)

    def read(self, column: str, positions: Tensor) -> list[str]:
        """The texts of a column; a missing one is empty, a number is written out."""
        return read_texts(self.split, column, positions)

    def words(self, column: str, positions: Tensor) -> list[list[str]]:
        """Lists of words; an empty row has one empty word."""
        rows = self.split.rows.column(column, positions.numpy())
        return [["" if word is None else str(word) for word in row or [""]] for row in rows]

    def encode(self, *texts: list[Any], **how: Any) -> Any:
        """Token ids int64 [N, T] of texts or pairs of texts, padded to the longest."""
        encoded = self.tokenizer(
            *texts,
            truncation=True,
            max_length=self.length,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
            **how,
        )
        return without_empty_rows_(encoded, self.tokenizer)

    def inputs(self, encoded: Mapping[str, Tensor]) -> Batch:
        """The parts of the tokenizer's output that the model takes."""
        check_ids(encoded["input_ids"], self.vocabulary)
        return {name: tensor for name, tensor in encoded.items() if name in self.accepted}


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceExamples:
    """One or two texts per row, padded to the longest of the batch, with the label of the row."""

    text: Encoder
    columns: Columns
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.text)

    def batch(self, positions: Tensor, chance: torch.Generator) -> Batch:
        """Token ids int64 [N, T] and other inputs of the model; labels unchanged."""
        if self.columns.tags:
            words = self.text.words(self.columns.inputs[0], positions)
            batch = self.text.inputs(self.text.encode(words, is_split_into_words=True))
        else:
            texts = [self.text.read(name, positions) for name in self.columns.inputs]
            batch = self.text.inputs(self.text.encode(*texts))
        if self.labels is not None:
            batch["labels"] = self.labels[positions]
        return batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TagExamples:
    """Words with a tag each; the first token of a word carries its tag.

    `ids` are the head's classes for those of the data, None if they are the same; `names` are the
    classes of the data, for tags that are strings.
    """

    text: Encoder
    columns: Columns
    ids: tuple[int, ...] | None
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.text)

    def batch(self, positions: Tensor, chance: torch.Generator) -> Batch:
        """Token ids int64 [N, T]; labels int64 [N, T], -100 at other tokens and padding."""
        words = self.text.words(self.columns.inputs[0], positions)
        tags = self.text.split.rows.column(str(self.columns.label), positions.numpy())
        encoded = self.text.encode(words, is_split_into_words=True)
        labels = torch.full_like(encoded["input_ids"], IGNORED)
        for row, row_tags in enumerate(tags):
            before: int | None = None
            for place, word in enumerate(words_of(encoded, row, words[row], self.text.tokenizer)):
                if word is not None and word != before and word < len(row_tags or ()):
                    labels[row, place] = self._class(row_tags[word])
                before = word
        return {**self.text.inputs(encoded), "labels": labels}

    def _class(self, tag: object) -> int:
        """The head's class of a tag, given by number or by name; none is ignored."""
        if isinstance(tag, str):
            number = self.names.index(tag) if tag in self.names else -1
        else:
            number = -1 if tag is None else int(str(tag))
        if number < 0:
            return IGNORED
        return number if self.ids is None else self.ids[number]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExamples:
    """A source and a target text per row; with one column the target is a copy of it."""

    text: Encoder
    columns: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.text)

    def batch(self, positions: Tensor, chance: torch.Generator) -> Batch:
        """Source ids int64 [N, T]; labels int64 [N, U], -100 where padded."""
        source = self.text.read(self.columns[0], positions)
        target = self.text.read(self.columns[-1], positions)
        wanted = self.text.encode(text_target=target)
        hidden = wanted["attention_mask"] == 0
        labels = wanted["input_ids"].masked_fill(hidden, IGNORED)
        return {**self.text.inputs(self.text.encode(source)), "labels": labels}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockExamples:
    """Blocks of running text, the last of them padded; `finish` makes the labels.

    Attributes:
        ids: int64 [blocks, length].
        sizes: int64 [blocks], the tokens of each block without padding.
        finish: (ids, attention mask, chance) to (inputs, labels).
        accepted: names of the model's arguments.
    """

    ids: Tensor = field(repr=False)
    sizes: Tensor = field(repr=False)
    finish: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
    accepted: frozenset[str]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, positions: Tensor, chance: torch.Generator) -> Batch:
        """Token ids, attention mask and labels, int64 [N, length] each."""
        ids = self.ids[positions]
        mask = (torch.arange(ids.shape[1]) < self.sizes[positions, None]).long()
        inputs, labels = self.finish(ids, mask, chance)
        batch = {"input_ids": inputs, "labels": labels}
        if "attention_mask" in self.accepted:
            batch["attention_mask"] = mask
        return batch


def read_texts(split: Split, column: str, positions: Tensor) -> list[str]:
    """The texts of a column; a missing one is empty, a number is written out."""
    values = split.rows.column(column, positions.numpy())
    return ["" if value is None else str(value) for value in values]


def blocks_of(
    split: Split, column: str, tokenizer: Any, length: int, *, limit: int | None, masked: bool
) -> tuple[Tensor, Tensor]:
    """All texts of a split in one stream, cut into (ids [blocks, length], sizes [blocks]).

    Rows are joined as they are; their own newlines separate them. Masked models get their start
    and end tokens around every block. The last block is padded, so that every token counts. At
    most `limit` blocks are made, from the first rows.
    """
    before = [tokenizer.cls_token_id] if masked and tokenizer.cls_token_id is not None else []
    after = [tokenizer.sep_token_id] if masked and tokenizer.sep_token_id is not None else []
    room = length - len(before) - len(after)
    needed = None if limit is None else limit * room
    stream = np.concatenate([*_stream(split, column, tokenizer, needed), _NOTHING])[:needed]
    # One token alone predicts nothing.
    pieces = [stream[i : i + room] for i in range(0, len(stream), room)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    ids = torch.full((len(pieces), length), int(tokenizer.pad_token_id))
    sizes = torch.zeros(len(pieces), dtype=torch.int64)
    for row, piece in enumerate(pieces):
        whole = [*before, *piece.tolist(), *after]
        ids[row, : len(whole)] = torch.tensor(whole)
        sizes[row] = len(whole)
    return ids, sizes


def _stream(split: Split, column: str, tokenizer: Any, needed: int | None) -> Iterator[Ids]:
    """Tokens of the rows, without special ones, until at least `needed` have come."""
    given = 0
    for start in range(0, len(split), CHUNK_ROWS):
        positions = torch.arange(start, min(start + CHUNK_ROWS, len(split)))
        texts = read_texts(split, column, positions)
        with quiet():  # hides advice about long texts, which are cut into blocks anyway
            rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        for ids in rows["input_ids"]:
            given += len(ids)
            yield np.asarray(ids, np.int64)
        if needed is not None and given >= needed:
            return


def next_token(ids: Tensor, mask: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels of a causal model: the ids themselves (the model shifts them), padding ignored."""
    return ids, ids.masked_fill(mask == 0, IGNORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskTokens:
    """Masked language modelling as in BERT (Devlin et al. 2019, section 3.1).

    15 % of the tokens, at least one per block, are to be predicted. Of these 80 % are replaced by
    the mask token and 10 % by a random token, and 10 % stay as they are.
    """

    mask_id: int
    vocabulary: int
    special: tuple[int, ...]

    def __call__(self, ids: Tensor, mask: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Inputs and labels, int64 [N, length] each; -100 where nothing is predicted."""
        fixed = (mask == 0) | torch.isin(ids, torch.tensor(self.special))
        draw = torch.rand(ids.shape, generator=chance).masked_fill(fixed, 2.0)
        chosen = (draw < MASKED_SHARE) | (draw == draw.min(dim=1, keepdim=True).values)
        chosen &= ~fixed
        how = torch.rand(ids.shape, generator=chance)
        anything = torch.randint(self.vocabulary, ids.shape, generator=chance)
        inputs = torch.where(chosen & (how < 0.8), self.mask_id, ids)
        inputs = torch.where(chosen & (how >= 0.9), anything, inputs)
        return inputs, ids.masked_fill(~chosen, IGNORED)


def mask_tokens(tokenizer: Any, vocabulary: int | None, source: str) -> MaskTokens:
    """The masking rule of a tokenizer.

    Raises:
        DataError: it has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise DataError(f"the tokenizer of {source} has no mask token, which a masked model needs")
    return MaskTokens(
        mask_id=int(tokenizer.mask_token_id),
        vocabulary=min(len(tokenizer), vocabulary or len(tokenizer)),
        special=tuple(sorted(set(map(int, tokenizer.all_special_ids)))),
    )
