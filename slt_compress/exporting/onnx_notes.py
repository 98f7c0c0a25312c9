"""What a user of an exported ONNX model should be told, because the file does not show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from slt_compress.artifacts import ONNX_MODEL


def tied_twice(folder: Path, ties: Mapping[str, str]) -> tuple[str, ...]:
    """A warning for each tied weight that the model in `folder` stores a second time.

    Args:
        folder: holds the model.
        ties: a further name of a tied weight to its first.
    """
    import onnx

    model = onnx.load(str(folder / ONNX_MODEL), load_external_data=False)
    stored = {entry.name.removeprefix("model."): entry for entry in model.graph.initializer}
    return tuple(
        f"{alias} is tied to {key} and stored a second time in the ONNX model: what later changes"
        " one of the two (pruning, quantisation) leaves the other as it is"
        for alias, key in sorted(ties.items())
        if alias in stored and key in stored
    )
