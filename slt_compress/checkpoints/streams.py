"""Checkpoints read or made one tensor at a time, for models larger than memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from slt_compress.checkpoints import families
from slt_compress.checkpoints.checkpoint import Checkpoint
from slt_compress.checkpoints.filling import seeded_filler
from slt_compress.checkpoints.origins import (
    checked_init,
    checked_record,
    locate_weights,
    recorded_checkpoint,
    recorded_text,
)
from slt_compress.errors import SourceError
from slt_compress.storage.lazy import LazyMapping, LazyTensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A checkpoint without weights, and its weights one at a time.

    Attributes:
        checkpoint: its module is on the meta device.
        tensors: by state-dict name, as `reopen` would give them; read anew at every access.
        renamed: whether any of them has a different name in its file.
    """

    checkpoint: Checkpoint
    tensors: Mapping[str, Tensor]
    renamed: bool


def stream_origin(
    record: Mapping[str, object],
    stored: Mapping[str, Tensor],
    *,
    override: str | Path | None = None,
) -> Stream | None:
    """The origin that `origin_record` recorded, tensor by tensor; None if all are needed at once.

    All are needed if the library does more than copy tensors from the files: if it fuses or splits
    them, chooses their dtype or makes up a missing one.

    Args:
        record: as for `reopen`.
        stored: the tensors of a random init that its seed does not determine.
        override: as for `reopen`.

    Raises:
        SourceError: as for `reopen`, except for errors in weights, which are not read.
    """
    family, task, kind, config = checked_record(record)
    try:
        module = families.sketch_module(family, task, config)
    except (SourceError, RuntimeError, NotImplementedError):
        return None  # some architectures need values while they are built
    own = module.state_dict(keep_vars=True)
    if not all(isinstance(tensor, Tensor) for tensor in own.values()):
        return None
    if kind == "random":
        init = checked_init(record.get("init"))
        if init is None or init.scheme == "default":
            return None
        fill = seeded_filler(module, init.scheme, init.seed)
        checkpoint = recorded_checkpoint(
            record, module, folder=None, revision=recorded_text(record, "revision"), file_keys={},
            stored=tuple(name for name in own if name in stored),
        )  # fmt: skip
        tensors = LazyMapping(own, lambda name: stored[name] if name in stored else fill(name))
        return Stream(checkpoint=checkpoint, tensors=tensors, renamed=False)
    files, folder, revision = locate_weights(record, override)
    lazy = LazyTensors(files, SourceError)
    shells = lazy.shells()
    places = families.direct_keys(family, config, module, shells) if shells else None
    if places is None:
        return None
    checkpoint = recorded_checkpoint(
        record, module, folder=folder, revision=revision, stored=(),
        file_keys={name: (places[name],) for name, _ in module.named_parameters()},
    )  # fmt: skip
    return Stream(
        checkpoint=checkpoint,
        tensors=LazyMapping(own, lambda name: lazy[places[name]].to(own[name].dtype)),
        renamed=any(key not in own or own[key] is not own[name] for name, key in places.items()),
    )
