"""A data set, file or folder as seeded batches, preprocessed for a checkpoint.

`open_data` finds splits, columns and classes without a model; `prepare` makes the batches for one.
"""

from slt_compress.data.batches import Batch, Batches, SearchData
from slt_compress.data.defaults import DefaultData, default_data, open_default
from slt_compress.data.modalities import modalities_of
from slt_compress.data.options import DataOptions
from slt_compress.data.preparing import prepare
from slt_compress.data.raw import RawData, open_data

__all__ = [
    "Batch",
    "Batches",
    "DataOptions",
    "DefaultData",
    "RawData",
    "SearchData",
    "default_data",
    "modalities_of",
    "open_data",
    "open_default",
    "prepare",
]
