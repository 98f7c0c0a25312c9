"""Modalities: what a model reads, known before a weight is loaded, and how examples are made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from slt_compress.data.audio import sounds
from slt_compress.data.image_text import images_with_texts
from slt_compress.data.images import images
from slt_compress.data.splits import Ready
from slt_compress.data.text import texts
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data.raw import RawData


@dataclass(frozen=True, slots=True, kw_only=True)
class Modality:
    """One kind of input.

    Attributes:
        plural: the word for several of them, in messages.
        arguments: the arguments of `forward` that take it as the main input.
        make: makes the examples of a data set for a checkpoint.
    """

    plural: str
    arguments: tuple[str, ...]
    make: Callable[[RawData, Checkpoint, int | None], Ready]


# How the columns of a data set are recognised as one of these: `options.STORED`, `columns`.
MODALITIES: Mapping[str, Modality] = MappingProxyType(
    {
        "image": Modality(plural="images", arguments=("pixel_values",), make=images),
        "text": Modality(plural="texts", arguments=("input_ids",), make=texts),
        "audio": Modality(
            plural="sounds", arguments=("input_values", "input_features"), make=sounds
        ),
        "image-text": Modality(plural="images with texts", arguments=(), make=images_with_texts),
    }
)
# The tasks of models that read an image and a text together.
_PAIRED = ("zero-shot-image-classification", "visual-question-answering", "image-text-to-text")
# What transformers calls the kinds of inputs of a model, in words.
_WORDS = {"image": "images", "audio": "sound", "time": "time series"}


def modalities_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a model can be given, the usual first; its module may be on the meta device.

    A language model that reads other things too is given text alone, or text with images if the
    data has both.

    Raises:
        DataError: it reads something that data sets do not hold, or reads other things together.
    """
    if checkpoint.family != "transformers":
        return ("image",)
    module, task = checkpoint.module, checkpoint.task
    declared = getattr(module, "input_modalities", "text")
    kinds = (declared,) if isinstance(declared, str) else tuple(declared)
    argument = str(getattr(module, "main_input_name", "input_ids"))
    accepted = inspect.signature(module.forward).parameters
    decodes = "decoder_input_ids" in accepted
    paired = {"pixel_values", "input_ids"} <= set(accepted) and not decodes
    main = _modality_of(argument) if argument in accepted else None
    if main is None and argument in accepted:  # Perceiver's input has a second name for each kind
        main = next(filter(None, map(_modality_of, accepted)), None)
    if task in _PAIRED and paired:
        answers = task == "image-text-to-text" and main == "text"
        return ("image-text", "text") if answers else ("image-text",)
    if main == "text" and task != "features":
        return ("text", "image-text") if paired and task == "causal-lm" else ("text",)
    alone = len(kinds) == 1 or set(kinds) == {"image", "video"}
    if main is not None and (alone or task == "audio-classification") and not decodes:
        return (main,)
    reads = " and ".join(_WORDS.get(kind, kind) for kind in kinds)
    raise DataError(
        f"{checkpoint.source} reads {reads} ({argument}) as a model for {task}, and no data set "
        "gives that; load it in Python and search it with batches and a loss of your own: "
        "slt_compress.search(module, batches, loss_fn=loss_fn)"
    )


def _modality_of(argument: str) -> str | None:
    named = (name for name, modality in MODALITIES.items() if argument in modality.arguments)
    return next(named, None)


def maker_of(
    raw: RawData, checkpoint: Checkpoint
) -> Callable[[RawData, Checkpoint, int | None], Ready]:
    """The function that makes the examples, once the data is known to suit the model.

    Raises:
        DataError: the model reads something else.
    """
    readable = modalities_of(checkpoint)
    usable = next((kind for kind in readable if kind in raw.columns.modalities), None)
    if usable is None:
        wanted, held = MODALITIES[readable[0]].plural, MODALITIES[raw.modality].plural
        names = " and ".join(f"data.{key}=COLUMN" for key in readable[0].split("-"))
        raise DataError(
            f"{checkpoint.source} reads {wanted} and {raw.spec} holds {held} "
            f"(column {', '.join(raw.columns.inputs)}); choose another --dataset or name the "
            f"column with --set {names}"
        )
    return MODALITIES[usable].make
