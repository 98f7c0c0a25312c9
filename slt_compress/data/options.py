"""What a user may say about a data set: the `data` section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field

from slt_compress.data.augment import Augment
from slt_compress.errors import DataError

HELD_OUT_CAP = 2_000
"""The most training examples that are held out to select on."""

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""What splits are called, and what each of them is."""

AUDIO_NAMES = ("audio", "speech", "sound")
"""What columns of sound are called: nothing else tells them from pictures without a type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Names and limits that override what is found in the data itself.

    Attributes:
        train: split to search on; default "train".
        test: split to measure on; default "test", else "validation".
        image: column of the images.
        audio: column of the sounds.
        label: column of the labels.
        text: one text column, or two for pairs (source and target for sequence to sequence).
        limit_train: the most training examples (blocks of text for language models).
        held_out: fraction of the training examples to select on, at most 2,000 of them.
        max_length: tokens in an example. Default: 128, or what the model can take if less.
        max_seconds: what a sound is cut to.
        augment: how training pictures are changed at random.

    Raises:
        DataError: a limit or fraction out of range, or more than two text columns.
    """

    train: str | None = None
    test: str | None = None
    image: str | None = None
    audio: str | None = None
    label: str | None = None
    text: tuple[str, ...] = ()
    limit_train: int | None = None
    held_out: float = 0.1
    max_length: int | None = None
    max_seconds: float = 20.0
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        """Refuse values that no data set could meet."""
        if not 0 < self.held_out < 1:
            raise DataError(f"data.held_out is {self.held_out}; it must lie between 0 and 1")
        for name, value, least in (
            ("limit_train", self.limit_train, 2),
            ("max_length", self.max_length, 4),
        ):
            if value is not None and value < least:
                raise DataError(f"data.{name} is {value}; it must be at least {least}")
        if not self.max_seconds > 0:
            raise DataError(f"data.max_seconds is {self.max_seconds}; it must be above 0")
        if len(self.text) > 2:
            raise DataError(f"data.text names {len(self.text)} columns; give one, or two for pairs")
