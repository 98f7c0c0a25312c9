"""Open checkpoints of transformers, timm and the literature, from the hub, a folder or a seed."""

from __future__ import annotations

from slt_compress.checkpoints.checkpoint import TASKS, Checkpoint, Family, Init, Kind, Task
from slt_compress.checkpoints.downloads import fetch_all
from slt_compress.checkpoints.families import build_module
from slt_compress.checkpoints.opening import open_checkpoint, sketch_checkpoint
from slt_compress.checkpoints.origins import origin_files, origin_record, reopen
from slt_compress.checkpoints.streams import Stream, stream_origin
from slt_compress.checkpoints.weight_files import read_folder

__all__ = [
    "TASKS",
    "Checkpoint",
    "Family",
    "Init",
    "Kind",
    "Stream",
    "Task",
    "build_module",
    "fetch_all",
    "open_checkpoint",
    "origin_files",
    "origin_record",
    "read_folder",
    "reopen",
    "sketch_checkpoint",
    "stream_origin",
]
