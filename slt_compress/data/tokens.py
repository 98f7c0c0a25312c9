"""The tokenizer of a checkpoint, and the length of an example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from slt_compress.checkpoints.companions import is_tokenizer_file
from slt_compress.data.processors import opening
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from slt_compress.checkpoints import Checkpoint

DEFAULT_LENGTH = 128
# Files of a tokenizer that hold no vocabulary.
_SETTINGS = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


def open_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer in the checkpoint's folder; its end token pads where it has no pad token.

    Raises:
        DataError: no tokenizer there, or one that cannot be used.
    """
    folder, tokenizer = checkpoint.folder, None
    if folder is not None:
        with opening("tokenizer", folder, absent=not _has_tokenizer_files(folder)):
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if folder is None or tokenizer is None or _lacks_vocabulary(tokenizer, folder):
        raise DataError(
            f"{checkpoint.source} has no tokenizer (tokenizer.json, tokenizer.model, …) and the "
            "data set is text; save the tokenizer into the checkpoint's folder"
        )
    pad_on_the_right_(tokenizer, folder)
    return tokenizer


def _has_tokenizer_files(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir() if path.is_file()} - _SETTINGS
    return any(map(is_tokenizer_file, names))


def _lacks_vocabulary(tokenizer: Any, folder: Path) -> bool:
    """Whether a tokenizer reads files and has none of them: transformers makes an empty one then.

    Tokenizers of bytes and characters read no files.
    """
    names = {*getattr(tokenizer, "vocab_files_names", {}).values()}
    return bool(names) and not any((folder / name).is_file() for name in (*names, "tokenizer.json"))


def pad_on_the_right_(tokenizer: Any, folder: Path) -> None:
    """Let a tokenizer pad, by its end token where it has no pad token.

    Raises:
        DataError: it has neither.
    """
    if tokenizer.pad_token_id is None:
        fallback = tokenizer.eos_token or tokenizer.unk_token
        if fallback is None:
            raise DataError(f"the tokenizer in {folder} has neither a pad nor an end token")
        tokenizer.pad_token = fallback
    # Padding on the left, which some decoders ask for, would shift the positions of a block.
    tokenizer.padding_side = "right"


def vocabulary_of(checkpoint: Checkpoint) -> int | None:
    """How many token ids the model knows, if its config says so."""
    known = text_config(checkpoint).get("vocab_size")
    return known if isinstance(known, int) else None


def check_ids(ids: Tensor, vocabulary: int | None) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        DataError: an id beyond the vocabulary.
    """
    # By id and not by size, because some tokenizers have more tokens than they ever produce.
    highest = int(ids.max()) if ids.numel() else 0
    if vocabulary is not None and highest >= vocabulary:
        raise DataError(
            f"the tokenizer gives token id {highest:,} and the model knows {vocabulary:,} tokens; "
            "they do not belong together"
        )


def length_of(checkpoint: Checkpoint, tokenizer: Any, asked: int | None) -> int:
    """Tokens in an example: `asked`, else 128 or the model's context if that is shorter.

    Raises:
        DataError: `asked` is more than the model can take.
    """
    context = context_of(checkpoint, tokenizer.model_max_length)
    if asked is not None and context is not None and asked > context:
        raise DataError(
            f"data.max_length is {asked} tokens and {checkpoint.source} takes at most {context}"
        )
    return asked or min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)


def context_of(checkpoint: Checkpoint, limit: float = 10**9) -> int | None:
    """Most tokens that the model and a tokenizer of this limit can take; None if unlimited."""
    config = text_config(checkpoint)
    contexts = [config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int)]
    contexts += _positions(checkpoint.module)
    # Tokenizers without a limit give a huge number.
    contexts += [limit] if limit < 10**9 else []
    return min((int(context) for context in contexts if context > 0), default=None)


def _positions(module: nn.Module) -> list[int]:
    """How many positions are left where some stand for padding, as in RoBERTa.

    Such models count positions from the one after that of the padding.
    """
    return [
        child.num_embeddings - child.padding_idx - 1
        for name, child in module.named_modules()
        if isinstance(child, nn.Embedding) and child.padding_idx is not None
        and name.rpartition(".")[2] in ("position_embeddings", "embed_positions")
        and type(child) is nn.Embedding
    ]  # fmt: skip


def text_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The config, with the values of its text part if a model of several inputs has one."""
    config = dict(checkpoint.config)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config
