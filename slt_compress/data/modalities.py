"""What a model reads, known before a weight is loaded; what no data set can give is refused."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from slt_compress.errors import DataError

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data.columns import Modality

# What transformers calls the kinds of inputs of a model, in words.
_WORDS = {"image": "pictures", "text": "text", "audio": "sound", "video": "video",
          "time": "time series"}  # fmt: skip
# The argument of `forward` through which a data set is given, by what it holds.
_ARGUMENTS: dict[str, Modality] = {
    "pixel_values": "image",
    "input_ids": "text",
    "input_values": "audio",
    "input_features": "audio",
}
# The tasks of models that read a picture and a text together.
_PAIRED = ("zero-shot-image-classification", "visual-question-answering", "image-text-to-text")


def modalities_of(checkpoint: Checkpoint) -> tuple[Modality, ...]:
    """What a model can be fed, the usual first; its module may be on the meta device.

    A language model that reads other things too is fed text alone, or with pictures where the
    data has both.

    Raises:
        DataError: it reads something that data sets do not give, or other things together.
    """
    if checkpoint.family != "transformers":
        return ("image",)
    module, task = checkpoint.module, checkpoint.task
    named = getattr(module, "input_modalities", "text")
    kinds = (named,) if isinstance(named, str) else tuple(named)
    main = str(getattr(module, "main_input_name", "input_ids"))
    accepted = inspect.signature(module.forward).parameters
    decodes = "decoder_input_ids" in accepted
    paired = {"pixel_values", "input_ids"} <= set(accepted) and not decodes
    found = _ARGUMENTS.get(main) if main in accepted else None
    if task in _PAIRED and paired:
        tells = task == "image-text-to-text" and found == "text"
        return ("image-text", "text") if tells else ("image-text",)
    if found == "text" and task != "features":
        return ("text", "image-text") if paired and task == "causal-lm" else ("text",)
    alone = len(kinds) == 1 or set(kinds) == {"image", "video"}
    if found is not None and (alone or task == "audio-classification") and not decodes:
        return (found,)
    reads = " and ".join(_WORDS.get(kind, kind) for kind in kinds)
    raise DataError(
        f"{checkpoint.source} reads {reads} ({main}) as a model for {task}, which no data set is "
        "made into; load it in Python and search it with batches and a loss of your own: "
        "slt_compress.search(module, batches, loss_fn=loss_fn)"
    )
