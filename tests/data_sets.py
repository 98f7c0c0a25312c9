"""Small data sets that the tests of data write for themselves."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as papq
from PIL import Image

from slt_compress.checkpoints import Checkpoint, open_checkpoint
from slt_compress.data import DataOptions, SearchData, open_data, prepare

PLAIN = DataOptions()


def checkpoint(
    net: str = "lenet-300-100", classes: int = 10, names: tuple[str, ...] | None = None
) -> Checkpoint:
    """A reference net as `open_checkpoint` gives it, with class names where the test wants them."""
    opened = open_checkpoint(net, init="signed-constant", num_classes=classes)
    return replace(opened, classes=names)


def png(colour: tuple[int, int, int] | int, size: tuple[int, int] = (6, 6)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB" if isinstance(colour, tuple) else "L", size, colour).save(out, "PNG")
    return out.getvalue()


def write_table(path: Path, columns: Mapping[str, Any], features: Any = None) -> Path:
    table = pa.table(dict(columns))
    if features is not None:
        said = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": said})
    path.parent.mkdir(parents=True, exist_ok=True)
    papq.write_table(table, path)
    return path


def image_table(path: Path, count: int, names: list[str], start: int = 0) -> Path:
    """Images whose grey value is their row number, labelled in turn."""
    images = [{"bytes": png(start + row), "path": None} for row in range(count)]
    labels = [row % len(names) for row in range(count)]
    features = {"picture": {"_type": "Image"}, "kind": {"_type": "ClassLabel", "names": names}}
    return write_table(path, {"picture": images, "kind": labels}, features)


def ready(
    spec: Path | str, model: Checkpoint, options: DataOptions = PLAIN, **how: Any
) -> SearchData:
    arguments = {"batch_size": 4, "seed": 0} | how
    return prepare(open_data(str(spec), options), model, **arguments)


def shard_images(folder: Path) -> Path:
    """43 training images in two files, 9 test images (grey 100 and up), classes a and b."""
    image_table(folder / "train-00000-of-00002.parquet", 30, ["a", "b"])
    image_table(folder / "train-00001-of-00002.parquet", 13, ["a", "b"], start=30)
    image_table(folder / "test.parquet", 9, ["a", "b"], start=100)
    return folder
