"""Images with a text each as model inputs, prepared by the checkpoint's own processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slt_compress.checkpoints.quiet import quiet
from slt_compress.data.images import open_image
from slt_compress.data.labels import LabelMatch
from slt_compress.data.processors import has_processor, opening
from slt_compress.data.splits import Ready, accepted_of, cut, label_tensor, match_of
from slt_compress.data.text_examples import IGNORED, read_texts
from slt_compress.data.tokens import check_ids, length_of, pad_on_the_right_, vocabulary_of
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    from slt_compress.checkpoints import Checkpoint, Task
    from slt_compress.data.batches import Batch
    from slt_compress.data.columns import Columns
    from slt_compress.data.raw import RawData, Split

Texts = Sequence[list[str]]
"""The texts of a batch: one list per column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The processor of a checkpoint.

    Attributes:
        call: transformers' object.
        tokenizer: its tokenizer, which pads on the right.
        accepted: names of the model's arguments.
        vocabulary: how many token ids the model knows, None if unknown.
        length: most tokens in a text, not counting those that stand for an image.
        source: the checkpoint that it belongs to.
    """

    call: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    accepted: frozenset[str]
    vocabulary: int | None
    length: int
    source: str

    def encode(self, images: list[Image.Image], texts: list[str], **how: Any) -> Batch:
        """The parts of the processor's output that the model takes.

        Raises:
            DataError: the processor rejects the images or the texts.
        """
        try:
            with quiet():
                inputs = self.call(images=images, text=texts, return_tensors="pt", **how)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DataError(
                f"the processor of {self.source} cannot read these images and texts: {error}"
            ) from error
        check_ids(inputs["input_ids"], self.vocabulary)
        return {name: inputs[name] for name in inputs if name in self.accepted}


Encode = Callable[[Processor, "list[Image.Image]", Texts], "Batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTextExamples:
    """An image and its texts per row; `encode` makes the inputs, and labels if `labels` is None.

    Images are prepared anew for every batch, because their shapes depend on the batch.
    """

    split: Split
    columns: Columns
    processor: Processor
    encode: Encode
    labels: Tensor | None
    spec: str

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, positions: Tensor, chance: torch.Generator) -> Batch:
        """Pixels and token ids as the processor gives them, with labels if there are any."""
        stored = self.split.rows.column(str(self.columns.image), positions.numpy())
        images = [open_image(value, self.spec).convert("RGB") for value in stored]
        texts = [read_texts(self.split, name, positions) for name in self.columns.texts]
        batch = self.encode(self.processor, images, texts)
        if self.labels is not None:
            batch["labels"] = self.labels[positions]
        return batch


def matching_inputs(processor: Processor, images: list[Image.Image], texts: Texts) -> Batch:
    """Images and texts that are to be matched.

    Labels are int64 [2 N]: for each image its (first) text, then for each text its image. Texts
    are padded to the one length with which such models were trained.
    """
    own = texts[0]
    batch = processor.encode(
        images, own, padding="max_length", truncation=True, max_length=processor.length
    )
    places = [*(own.index(text) for text in own), *range(len(own))]
    return {**batch, "labels": torch.tensor(places)}


def question_inputs(processor: Processor, images: list[Image.Image], texts: Texts) -> Batch:
    """Images with a question each; the answer is a class."""
    return processor.encode(
        images, texts[0], padding=True, truncation=True, max_length=processor.length
    )


def generation_inputs(processor: Processor, images: list[Image.Image], texts: Texts) -> Batch:
    """Images with a text to be generated, after a question if there are two columns.

    Labels are the token ids of that text and of the end token, and -100 elsewhere.
    """
    tokenizer = processor.tokenizer
    asked = [""] * len(images) if len(texts) < 2 else _shortened(processor, texts[0])[0]
    told, sizes = _shortened(processor, texts[-1])
    end = tokenizer.eos_token or ""
    prompts = [_prompt(processor, question) for question in asked]
    start = tokenizer.bos_token
    begun = bool(start) and all(prompt.startswith(start) for prompt in prompts)
    batch = processor.encode(
        images, [a + b + end for a, b in zip(prompts, told, strict=True)], padding=True,
        **({"add_special_tokens": False} if begun else {}),
    )  # fmt: skip
    ids, whole = batch["input_ids"], batch["attention_mask"].sum(dim=1, keepdim=True)
    if not begun:
        whole = whole - _closing(tokenizer)
    own = torch.tensor(sizes).unsqueeze(1) + bool(end)
    place = torch.arange(ids.shape[1])
    hidden = (place < whole - own) | (place >= whole)
    return {**batch, "labels": ids.masked_fill(hidden, IGNORED)}


def _closing(tokenizer: Any) -> int:
    """How many special tokens a tokenizer appends to a text."""
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    return next((count for count, flag in enumerate(reversed(special)) if not flag), 0)


def _shortened(processor: Processor, texts: list[str]) -> tuple[list[str], list[int]]:
    """Texts cut to at most `length` tokens, and the number of tokens of each."""
    tokenizer, length = processor.tokenizer, processor.length
    with quiet():
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    cut_off = [
        text if len(ids) <= length else str(tokenizer.decode(ids[:length]))
        for text, ids in zip(texts, rows, strict=True)
    ]
    return cut_off, [min(len(ids), length) for ids in rows]


def _prompt(processor: Processor, question: str) -> str:
    """The prompt before the text, with the place of the image in it."""
    call = processor.call
    if getattr(call, "chat_template", None):
        said = [{"type": "image"}, *([{"type": "text", "text": question}] if question else [])]
        return str(
            call.apply_chat_template(
                [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
            )
        )
    mark = getattr(call, "image_token", None)
    if not isinstance(mark, str):
        raise DataError(
            f"the processor of {processor.source} has neither a chat template nor an image token, "
            "so the place of an image in a text is unknown; load the model in Python and search "
            "it with batches and a loss of your own: slt_compress.search(module, batches, "
            "loss_fn=loss_fn)"
        )
    return f"{mark}\n{question}\n" if question else f"{mark}\n"


# How each task reads an image and its texts; language models that take images generate.
_ENCODES: Mapping[Task, Encode] = {
    "zero-shot-image-classification": matching_inputs,
    "visual-question-answering": question_inputs,
    "image-text-to-text": generation_inputs,
    "causal-lm": generation_inputs,
}


def open_processor(checkpoint: Checkpoint, asked: int | None) -> Processor:
    """The processor in the checkpoint's folder; `asked` is the user's `data.max_length`.

    Raises:
        DataError: it is missing, cannot be used, or has no tokenizer.
    """
    folder = checkpoint.folder
    if folder is None or not has_processor(folder):
        raise DataError(
            f"{checkpoint.source} has no processor (preprocessor_config.json and a tokenizer) and "
            "reads images with text; save its processor into the checkpoint's folder"
        )
    with opening("processor", folder):
        from transformers import AutoProcessor

        call: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        tokenizer: Any = call.tokenizer
    pad_on_the_right_(tokenizer, folder)
    return Processor(
        call=call,
        tokenizer=tokenizer,
        accepted=accepted_of(checkpoint),
        vocabulary=vocabulary_of(checkpoint),
        length=length_of(checkpoint, tokenizer, asked),
        source=checkpoint.source,
    )


def images_with_texts(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    """Examples of images with texts.

    Raises:
        DataError: the checkpoint has no such processor, or augmentation is asked for.
    """
    if raw.options.augment.changes:
        raise DataError("data.augment works for images alone, and this model reads text with them")
    task = checkpoint.task
    asks = task == "visual-question-answering"
    match = match_of(raw, checkpoint) if asks else LabelMatch(matches=True)
    processor = open_processor(checkpoint, raw.options.max_length)
    train, held_out, test = (
        ImageTextExamples(
            split=split,
            columns=raw.columns,
            processor=processor,
            encode=_ENCODES[task],
            labels=label_tensor(split, match) if asks else None,
            spec=raw.spec,
        )
        for split in cut(raw, limit)
    )
    read = " and ".join(raw.columns.texts)
    notes = [f"{raw.spec}: images are read together with column {read}."]
    if task == "zero-shot-image-classification":
        notes.append("accuracy is how often an image and its text are matched within a batch.")
    return Ready(train=train, held_out=held_out, test=test, match=match, notes=tuple(notes))
