"""Sounds as model inputs, prepared by the checkpoint's own feature extractor."""

from __future__ import annotations

import inspect
import io
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from slt_compress.checkpoints.quiet import quiet
from slt_compress.data.processors import has_processor, opening
from slt_compress.data.splits import Ready, accepted_of, cut, label_tensor, match_of
from slt_compress.errors import DataError
from slt_compress.storage.regular import regular

if TYPE_CHECKING:
    import torch

    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data.batches import Batch
    from slt_compress.data.raw import RawData, Split

LEAST_SECONDS = 0.1
"""Shorter sounds are padded with silence: the convolutions of speech models span 25 ms."""

Sound = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extractor:
    """The feature extractor of a checkpoint.

    Attributes:
        call: transformers' object.
        rate: the samples per second that it expects.
        padding: arguments that make sounds of different lengths fit into one batch.
    """

    call: Any = field(repr=False)
    rate: int
    padding: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundExamples:
    """Examples of a split of sounds: the extractor's output, and class numbers as "labels"."""

    split: Split
    column: str
    extractor: Extractor
    accepted: frozenset[str]
    seconds: float
    labels: Tensor | None
    spec: str

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, positions: Tensor, chance: torch.Generator) -> Batch:
        """Samples [N, T] or features, as the model takes them; labels unchanged."""
        stored = self.split.rows.column(self.column, positions.numpy())
        extractor = self.extractor
        sounds = [open_sound(value, extractor.rate, self.seconds, self.spec) for value in stored]
        with quiet():
            features = extractor.call(
                sounds, sampling_rate=extractor.rate, return_tensors="pt", **extractor.padding
            )
        batch: Batch = {name: features[name] for name in features if name in self.accepted}
        if self.labels is not None:
            batch["labels"] = self.labels[positions]
        return batch


def open_sound(stored: object, rate: int, seconds: float, spec: str) -> Sound:
    """Decode a stored sound ({"bytes", "path"}) to one channel at `rate`, float32 [T].

    Reads WAV, FLAC, OGG, MP3 and anything else that libsndfile knows. Channels are averaged, and
    the sound is cut after `seconds`.

    Raises:
        DataError: a missing or damaged sound, or the extra `audio` is not installed.
    """
    try:
        import soundfile
        import soxr
    except ImportError as error:
        raise DataError(
            f"{spec} holds sound, which needs: pip install 'slt-compress[audio]'"
        ) from error
    value: dict[str, Any] = stored if isinstance(stored, dict) else {}
    source = value.get("bytes")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if source else regular(value["path"])) as file:
            given = int(file.samplerate)
            samples = file.read(int(seconds * given) + 1, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{spec}: a sound cannot be decoded: {error}") from error
    mono: Sound = samples.mean(axis=1, dtype=np.float32)
    if given != rate:
        mono = soxr.resample(mono, given, rate)
    mono = mono[: max(1, int(seconds * rate))]
    return np.pad(mono, (0, max(0, int(LEAST_SECONDS * rate) - len(mono))))


def open_extractor(checkpoint: Checkpoint) -> Extractor:
    """The feature extractor in the checkpoint's folder.

    Raises:
        DataError: it is missing or cannot be used.
    """
    folder = checkpoint.folder
    if folder is None or not has_processor(folder):
        raise DataError(
            f"{checkpoint.source} has no preprocessor_config.json, so its feature extractor is "
            "unknown; save the feature extractor into the checkpoint's folder"
        )
    with opening("feature extractor", folder):
        from transformers import AutoFeatureExtractor

        extractor: Any = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
        rate = int(extractor.sampling_rate)
    # Some pad to a fixed length themselves (Whisper's to 30 s), because their models need it.
    asked = inspect.signature(type(extractor).__call__).parameters.get("padding")
    padding = {"padding": True} if asked is not None and asked.default is False else {}
    return Extractor(call=extractor, rate=rate, padding=padding)


def sounds(raw: RawData, checkpoint: Checkpoint, limit: int | None) -> Ready:
    """Examples of sounds, with the classes of the rows if the head has them.

    Raises:
        DataError: the checkpoint has no feature extractor.
    """
    match = match_of(raw, checkpoint)
    make = partial(
        SoundExamples,
        column=raw.columns.inputs[0],
        extractor=open_extractor(checkpoint),
        accepted=accepted_of(checkpoint),
        seconds=raw.options.max_seconds,
        spec=raw.spec,
    )
    train, held_out, test = (
        make(split=split, labels=label_tensor(split, match)) for split in cut(raw, limit)
    )
    return Ready(train=train, held_out=held_out, test=test, match=match)
