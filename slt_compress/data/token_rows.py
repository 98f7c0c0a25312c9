"""Rows of tokens: what tokenizers leave empty, and which word each token belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

_STAND_INS = ("eos_token_id", "sep_token_id", "bos_token_id", "cls_token_id", "unk_token_id",
              "pad_token_id")  # fmt: skip


def without_empty_rows_(encoded: Any, tokenizer: Any) -> Any:
    """Give every row at least one token: a model can do nothing with none.

    Tokenizers that add no special tokens make nothing of an empty text, and float tensors of a
    batch of such texts. A token that a text ends or begins with stands in.
    """
    ids = encoded["input_ids"]
    if ids.shape[1] == 0:
        for name in list(encoded):
            encoded[name] = torch.zeros(len(ids), 1, dtype=torch.int64)
        ids = encoded["input_ids"]
    empty = encoded["attention_mask"].sum(dim=1) == 0
    if bool(empty.any()):
        known = (getattr(tokenizer, name, None) for name in _STAND_INS)
        ids[empty, 0] = next(int(token) for token in known if token is not None)
        encoded["attention_mask"][empty, 0] = 1
    return encoded


def words_of(encoded: Any, row: int, words: Sequence[str], tokenizer: Any) -> list[int | None]:
    """Which word each token of a row belongs to; None for special tokens and padding.

    Tokenizers that are written in Python do not say: their words are cut one by one, and found
    again in the row.
    """
    if encoded.is_fast:
        own: list[int | None] = encoded.word_ids(row)
        return own
    ids = encoded["input_ids"][row].tolist()
    pieces, owners = list[int](), list[int]()
    for number, word in enumerate(words):
        tokens = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word, is_split_into_words=True))
        pieces += tokens
        owners += [number] * len(tokens)
    starts = range(len(ids)) if pieces else ()
    start = max(starts, key=lambda at: _common(ids[at:], pieces), default=0)
    length = _common(ids[start:], pieces) if pieces else 0
    return [None] * start + list(owners[:length]) + [None] * (len(ids) - start - length)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count
