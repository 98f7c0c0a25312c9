"""The `data` section of a recipe: what a user may say about a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from slt_compress.data.augment import Augment
from slt_compress.errors import DataError

HELD_OUT_CAP = 2_000
"""At most this many training examples are held out for selection."""

SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
"""Usual names of splits, and which split each of them means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKind:
    """Encoded media in a column or in files of their own.

    Attributes:
        declared: how `datasets` declares such a column.
        names: the usual names of such a column.
        suffixes: of such files.
    """

    declared: str
    names: tuple[str, ...]
    suffixes: tuple[str, ...]


# By the option that names the column. `datasets` stores each of them as {"bytes", "path"}, so that
# an undeclared column is told by its name; it is of the first kind if no name fits.
STORED: Mapping[str, StoredKind] = MappingProxyType(
    {
        "image": StoredKind(
            declared="Image",
            names=("image", "img", "images", "picture"),
            suffixes=tuple(
                [
                    ".png",
                    ".apng",
                    ".jpg",
                    ".jpeg",
                    ".jpe",
                    ".jfif",
                    ".bmp",
                    ".dib",
                    ".gif",
                    ".webp",
                    ".tif",
                    ".tiff",
                    ".ppm",
                    ".pgm",
                    ".pbm",
                    ".pnm",
                    ".jp2",
                    ".j2k",
                    ".jpc",
                    ".jpf",
                    ".jpx",
                    ".j2c",
                    ".ico",
                    ".icns",
                    ".tga",
                    ".icb",
                    ".vda",
                    ".vst",
                    ".pcx",
                    ".dcx",
                    ".sgi",
                    ".rgb",
                    ".rgba",
                    ".bw",
                    ".dds",
                    ".psd",
                    ".xbm",
                    ".xpm",
                    ".msp",
                    ".im",
                    ".ras",
                    ".avif",
                ]
            ),
        ),
        "audio": StoredKind(
            declared="Audio",
            names=("audio", "speech", "sound"),
            suffixes=(".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".au", ".m4a"),
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Names and limits that override what the data itself suggests.

    Attributes:
        train: the split to search on; default "train".
        test: the split to measure on; default "test", or else "validation".
        image: the column of images.
        audio: the column of sounds.
        label: the column of labels.
        text: one text column, or two for pairs (source and target for sequence to sequence).
        limit_train: at most this many training examples (blocks of text for language models).
        held_out: fraction of the training examples held out for selection, at most 2,000.
        max_length: tokens per example; default 128, or the limit of the model if that is lower.
        max_seconds: longer sounds are cut to this length.
        augment: random changes to training images.

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
        """Refuse values that cannot be met by any data set."""
        if not 0 < self.held_out < 1:
            raise DataError(f"data.held_out is {self.held_out}; it must lie between 0 and 1")
        for name, value, minimum in (
            ("limit_train", self.limit_train, 2),
            ("max_length", self.max_length, 4),
        ):
            if value is not None and value < minimum:
                raise DataError(f"data.{name} is {value}; it must be at least {minimum}")
        if not self.max_seconds > 0:
            raise DataError(f"data.max_seconds is {self.max_seconds}; it must be above 0")
        if len(self.text) > 2:
            raise DataError(f"data.text names {len(self.text)} columns; give one, or two for pairs")
