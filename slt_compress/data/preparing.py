"""Make a data set ready for one checkpoint: splits, preprocessing, labels, batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slt_compress.data.batches import Batches, SearchData
from slt_compress.data.labels import head_of
from slt_compress.data.modalities import maker_of
from slt_compress.data.overview import overview, warnings_about
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from slt_compress.checkpoints import Checkpoint
    from slt_compress.data.raw import RawData


def prepare(
    raw: RawData, checkpoint: Checkpoint, *, batch_size: int, seed: int, limit: int | None = None
) -> SearchData:
    """Preprocess a data set as the checkpoint requires, and cut it into seeded batches.

    Args:
        raw: the data set.
        checkpoint: the model, whose folder holds its tokenizer or image processor.
        batch_size: examples in a batch.
        seed: of the order of the training batches; the splits do not depend on it.
        limit: at most this many test examples, drawn with a fixed seed (the first blocks of text).

    Raises:
        DataError: the data does not suit the task, or a tokenizer or processor is missing.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise DataError(f"batch size {batch_size} and evaluation.limit {limit} must be at least 1")
    ready = maker_of(raw, checkpoint)(raw, checkpoint, limit)
    held_out = Batches(source=ready.held_out, batch_size=batch_size, seed=seed)
    test = Batches(source=ready.test, batch_size=batch_size, seed=seed)
    train = Batches(
        source=ready.train, augmented=ready.augmented, batch_size=batch_size, seed=seed,
        shuffle=True,
    )  # fmt: skip
    head = head_of(raw, checkpoint.head, ready.match)
    return SearchData(
        spec=raw.spec,
        train=train,
        held_out=held_out,
        test=test,
        labels_match=ready.match.matches,
        label_note=ready.match.note,
        test_split=raw.test_split,
        splits={
            "train": train.examples,
            "held_out": held_out.examples,
            "test": test.examples,
        },
        notes=(*raw.notes, *ready.notes),
        head=head,
        overview=overview(raw, checkpoint, ready.match, head),
        warnings=warnings_about(raw, checkpoint, ready.match),
    )
