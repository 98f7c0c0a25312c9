"""Splits with matched labels: what every modality makes its examples from."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from slt_compress.data.batches import Examples, generator
from slt_compress.data.labels import LabelMatch, match_labels
from slt_compress.data.options import HELD_OUT_CAP, DataOptions
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data.raw import RawData, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The examples of the three splits, and notes about them.

    `augmented` are the training examples as an epoch sees them, if augmentation is asked for.
    """

    train: Examples
    held_out: Examples
    test: Examples
    match: LabelMatch
    notes: tuple[str, ...] = ()
    augmented: Examples | None = None


def cut(raw: RawData, limit: int | None) -> tuple[Split, Split, Split]:
    """Train, held-out and test rows; drawn with a fixed seed, in the order of the file."""
    whole, options = raw.splits["train"], raw.options
    if len(whole) < 2:
        raise DataError(
            f"{raw.spec} has one training example, which cannot be split into train and held-out"
        )
    wanted = min(len(whole), options.limit_train or len(whole))
    held = min(held_of(options, wanted), len(whole) - 1)
    order = torch.randperm(len(whole), generator=generator("held-out")).numpy()
    train = np.sort(order[held : held + wanted])
    return whole.select(train), whole.select(np.sort(order[:held])), capped(raw, limit)


def capped(raw: RawData, limit: int | None) -> Split:
    """The test rows, at most `limit` of them, drawn with a fixed seed."""
    test = raw.splits["test"]
    if limit is None or limit >= len(test):
        return test
    order = torch.randperm(len(test), generator=generator("limit")).numpy()
    return test.select(np.sort(order[:limit]))


def label_tensor(split: Split, match: LabelMatch) -> Tensor | None:
    """Labels as the head numbers them: int64 [N], float32 [N] or [N, C]; None if unmatched."""
    if split.labels is None or not match.matches:
        return None
    labels = torch.from_numpy(split.labels)
    if match.ids is None:
        return labels
    ids = torch.tensor(match.ids)
    if labels.dim() == 1:
        return ids[labels]
    flags = torch.zeros(len(labels), max(match.outputs or 0, int(ids.max()) + 1))
    flags[:, ids] = labels
    return flags


def held_of(options: DataOptions, examples: int) -> int:
    """How many training examples are held out."""
    return min(max(1, round(options.held_out * examples)), HELD_OUT_CAP)


def match_of(raw: RawData, checkpoint: Checkpoint) -> LabelMatch:
    """Whether the labels of the data match the classes of the head."""
    if checkpoint.task == "features":
        return LabelMatch(
            matches=False,
            note=f"The labels of {raw.spec} are not used: the model has no head; its hidden "
            "states are compared with the dense model's instead.",
        )
    if checkpoint.task == "token-classification" and not raw.columns.tags:
        return LabelMatch(
            matches=False,
            note=f"{raw.spec} has no tag for each word; the metrics compare with the dense model "
            "instead.",
        )
    return match_labels(raw, checkpoint.classes, checkpoint.num_classes, checkpoint.head)


def accepted_of(checkpoint: Checkpoint) -> frozenset[str]:
    """Names of the model's arguments."""
    return frozenset(inspect.signature(checkpoint.module.forward).parameters)
