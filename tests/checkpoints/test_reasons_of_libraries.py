"""What a library says of a damaged file is text of the file in part, and stays in one line."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from slt_compress.checkpoints.weight_files import read_tensors
from slt_compress.errors import SourceError


def test_a_line_break_in_a_header_breaks_no_line(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "\n", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(SourceError, match="is not a valid safetensors file") as caught:
        read_tensors([path])
    assert "\n" not in str(caught.value)
