"""Read data sets through the `datasets` library: hub ids and folders it has saved."""

from __future__ import annotations

import contextlib
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from slt_compress.checkpoints.quiet import quiet
from slt_compress.data.hub_errors import UnreadableError
from slt_compress.data.media_paths import with_own_paths
from slt_compress.data.rows import Rows, as_rows
from slt_compress.data.saved_files import expect_own_files
from slt_compress.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slt_compress.data.options import DataOptions

STREAMED_TRAIN = 5_000
STREAMED_TEST = 2_000
STREAMED_PIECES = 100


def is_saved(path: Path) -> bool:
    """Whether `datasets` saved this folder with `save_to_disk`."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_saved(path: Path, spec: str) -> dict[str, Rows]:
    """Splits of a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    Raises:
        DataError: the folder is damaged, or names or holds what is no file of its own.
    """
    import datasets

    expect_own_files(path, spec)
    try:
        found = datasets.load_from_disk(str(path))
        splits = found if isinstance(found, dict) else {"train": found}
        tables = {str(name): _table(split) for name, split in splits.items()}
    except Exception as error:  # the library raises anything, from KeyError to ArrowInvalid
        raise DataError(f"{spec} cannot be read as a saved data set: {_said(error)}") from error
    return {name: as_rows(with_own_paths(table, path, spec)) for name, table in tables.items()}


def read_hub(
    spec: str, options: DataOptions, *, stream: bool
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Splits of a hub data set `name` or `name:config`, and notes for the report.

    With `stream`, at most 5,000 rows to search on (or data.limit_train) and 2,000 to measure on
    are read, from at most about 100 pieces of the files, not the whole set.

    Raises:
        DataError: unknown, gated, unreachable, or only readable by running its own code.
    """
    import datasets

    name, _, config = spec.partition(":")
    try:
        with quiet(), _no_bars():
            found = datasets.load_dataset(name, config or None, streaming=stream)
            if not isinstance(found, dict):
                raise DataError(f"{spec} has no named splits")
            if stream:
                return _streamed(found, options, spec)
            return {str(split): _rows(rows) for split, rows in found.items()}, ()
    except DataError:
        raise
    except Exception as error:  # network, hub and library errors share no base class
        raise UnreadableError(spec, _why(error)) from error


def _why(error: Exception) -> str:
    import datasets
    import huggingface_hub.errors as hub

    said = _said(error)
    offline = (hub.OfflineModeIsEnabled, ConnectionError, TimeoutError)
    chain = [error, error.__cause__, error.__context__]
    if "script" in said.lower():
        why = "it runs code of its own to be read, which is never done; convert it to parquet"
    elif any(isinstance(e, hub.GatedRepoError) for e in chain) or "gated" in said.lower():
        why = "it is gated: accept its terms on the hub and log in with `hf auth login`"
    elif any(isinstance(e, offline) for e in chain) or "couldn't reach" in said.lower():
        why = "the hub cannot be reached"
    elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
        why = "there is no such path, and no such data set on the hub"
    else:
        why = said
    return why


def _said(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _rows(dataset: Any) -> Rows:
    return as_rows(_table(dataset))


def _table(dataset: Any) -> pa.Table:
    """The Arrow table behind a `datasets.Dataset`, with its features in the metadata."""
    if dataset._indices is not None:
        dataset = dataset.flatten_indices(keep_in_memory=True)
    table: pa.Table = dataset.data.table
    return table.replace_schema_metadata(dataset.features.arrow_schema.metadata)


def _streamed(
    found: Any, options: DataOptions, spec: str
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """Part of the split to search on and of the one to measure on; others are not fetched."""
    train = options.train or "train"
    tests = [options.test] if options.test else ["test", "validation"]
    test = next((name for name in tests if name in found and name != train), None)
    limits = {test: STREAMED_TEST, train: options.limit_train or STREAMED_TRAIN}
    splits = {str(name): _spread(found[name], limits[name]) for name in limits if name in found}
    read = ", ".join(f"{len(rows):,} rows of {name}" for name, rows in splits.items())
    return splits, (f"{spec} was streamed in part: {read}, spread evenly over its files.",)


def _spread(rows: Any, limit: int) -> Rows:
    """The first rows of pieces (row groups, else files) that lie evenly over a split.

    So a set that is sorted by class still gives every class, and what is fetched is bounded.
    """
    features = rows.features
    schema: pa.Schema = features.arrow_schema if features is not None else None
    # Older versions of datasets cannot cut files into row groups.
    rows = rows.reshard() if hasattr(rows, "reshard") else rows
    count = max(1, int(rows.num_shards))
    wanted = min(count, limit, STREAMED_PIECES)
    order = dict.fromkeys([piece * count // wanted for piece in range(wanted)] + [*range(count)])
    taken: list[Any] = []
    for index in order:
        if len(taken) >= limit:
            break
        piece = rows.shard(num_shards=count, index=index) if count > 1 else rows
        share = min(-(-limit // wanted), limit - len(taken))
        taken += islice(iter(piece.decode(False)), share)
    return as_rows(pa.Table.from_pylist(taken, schema=schema))


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """No progress bars on stderr, where our own are; the library's setting comes back after."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()
