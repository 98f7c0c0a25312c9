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
_ARGUMENTS: dict[str, Modality] = {"pixel_values": "image", "input_ids": "text"}


def modality_of(checkpoint: Checkpoint) -> Modality:
    """Whether a model is fed pictures or text; its module may be on the meta device.

    A language model that reads other things too is fed text alone.

    Raises:
        DataError: it reads something that data sets do not give, or several things at once.
    """
    if checkpoint.family != "transformers":
        return "image"
    module = checkpoint.module
    named = getattr(module, "input_modalities", "text")
    kinds = (named,) if isinstance(named, str) else tuple(named)
    main = str(getattr(module, "main_input_name", "input_ids"))
    accepted = inspect.signature(module.forward).parameters
    found = _ARGUMENTS.get(main) if main in accepted else None
    alone = found is not None and (len(kinds) == 1 or set(kinds) == {"image", "video"})
    if found is not None and (alone or (found == "text" and checkpoint.task != "features")):
        return found
    reads = " and ".join(_WORDS.get(kind, kind) for kind in kinds)
    raise DataError(
        f"{checkpoint.source} reads {reads} ({main}), and data sets give pictures or text; load "
        "it in Python and search it with batches and a loss of your own: "
        "slt_compress.search(module, batches, loss_fn=loss_fn)"
    )
