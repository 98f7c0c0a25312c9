"""Defaults: the data set that is used where none is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slt_compress.data.hub_errors import UnreadableError
from slt_compress.data.modalities import MODALITIES, modalities_of
from slt_compress.data.raw import IMAGE_DEFAULT, TEXT_DEFAULT, RawData, open_data
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data.options import DataOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultData:
    """A data set that nobody has named.

    Attributes:
        spec: where it is on the Hugging Face hub.
        download: what is downloaded, and how much.
        others: other data to name for such a model, in words.
    """

    spec: str
    download: str
    others: str


_DEFAULTS = {
    "image": DefaultData(
        spec=IMAGE_DEFAULT,
        download="streams about 7,000 of its images, roughly 0.8 GB, each time",
        others="an image folder, or digits, which comes with the package",
    ),
    "text": DefaultData(
        spec=TEXT_DEFAULT,
        download="downloads about 8 MB once",
        others="a txt, csv, jsonl or parquet file",
    ),
}


def default_data(checkpoint: Checkpoint) -> DefaultData:
    """The data set for what a model reads; the module may be on the meta device.

    Raises:
        DataError: there is none, or a random network could not learn its labels from it.
    """
    readable = modalities_of(checkpoint)
    known = next((kind for kind in readable if kind in _DEFAULTS), None)
    if known is None:
        raise DataError(
            f"there is no default data set of {MODALITIES[readable[0]].plural}; name one with "
            "--dataset SPEC: a hub id NAME[:CONFIG], a file or a folder"
        )
    labelled = ("text-classification", "token-classification")
    if checkpoint.init is not None and checkpoint.task in labelled:
        raise DataError(
            f"there is no default data set with labels for {checkpoint.task}, which a random "
            "network needs; name one with --dataset SPEC, such as --dataset nyu-mll/glue:sst2"
        )
    return _DEFAULTS[known]


def open_default(default: DefaultData, checkpoint: Checkpoint, options: DataOptions) -> RawData:
    """Open the data set that nobody has named.

    Raises:
        DataError: it cannot be read; the message says why it was wanted, and the ways on.
    """
    try:
        return open_data(default.spec, options)
    except UnreadableError as error:
        name, _, _ = default.spec.partition(":")
        raise DataError(
            f"no data set is named, so the default for {checkpoint.task} was wanted: "
            f"{default.spec} ({default.download}); but {error.why}. Three ways on: name data of "
            f"your own with --dataset ({default.others}); run this where the hub can be reached, "
            "or set HF_ENDPOINT to a mirror of it; or download it elsewhere (`hf download "
            f"--repo-type dataset {name} --local-dir data`) and add --dataset data"
        ) from error
