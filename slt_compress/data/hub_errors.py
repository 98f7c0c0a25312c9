"""What prevents a data set on the hub from being read."""

from __future__ import annotations

from slt_compress.errors import DataError


class UnreadableError(DataError):
    """A data set on the hub that cannot be read; `why` is the reason alone."""

    def __init__(self, spec: str, why: str) -> None:
        self.why = why
        super().__init__(
            f"data set {spec} cannot be read: {why} (--dataset takes digits, an image folder, "
            "parquet, csv, jsonl or txt, or a hub id NAME[:CONFIG])"
        )
