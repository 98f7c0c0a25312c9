"""Images of masks: a small picture of the share of weights that is kept in each place."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from slt_compress.evidence.reporting import LayerRow

LAYERS = 12
_SIDE = 160  # pixels of a picture at most


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskImage:
    """A mask as a matrix of its first dimension by all others, made smaller by means.

    Attributes:
        name: of the layer.
        rows, columns: of the matrix.
        png: 8-bit greyscale, base64; black is kept, white removed.
        cell: rows and columns of the matrix that a pixel stands for, at most.
    """

    name: str
    rows: int
    columns: int
    png: str
    cell: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def chosen_layers(layers: Sequence[LayerRow]) -> list[str]:
    """The layers that are shown: the first, the last, the extremes, and some evenly between."""
    if len(layers) <= LAYERS:
        return [layer["name"] for layer in layers]
    by_sparsity = sorted(range(len(layers)), key=lambda index: layers[index]["sparsity"])
    wanted = [0, len(layers) - 1, by_sparsity[0], by_sparsity[-1]]
    wanted += [round(i * (len(layers) - 1) / (LAYERS - 1)) for i in range(LAYERS)]
    places = sorted(list(dict.fromkeys(wanted))[:LAYERS])
    return [layers[place]["name"] for place in places]


def mask_image(name: str, mask: Tensor) -> MaskImage:
    """The image of one mask, of any shape."""
    matrix = mask.reshape(mask.shape[0] if mask.dim() > 1 else 1, -1).numpy()
    rows, columns = matrix.shape
    shares = _means(_means(matrix.astype(np.float32), 0), 1)
    pixels = np.round(255 * (1 - shares)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode=None).save(file, "PNG", optimize=True)
    cell = (-(-rows // pixels.shape[0]), -(-columns // pixels.shape[1]))
    png = base64.b64encode(file.getvalue()).decode()
    return MaskImage(name=name, rows=rows, columns=columns, png=png, cell=cell)


def _means(matrix: np.ndarray[Any, np.dtype[np.float32]], axis: int) -> Any:
    """The matrix with at most `_SIDE` entries along an axis, each the mean of an equal share."""
    size = matrix.shape[axis]
    count = min(size, _SIDE)
    starts = np.arange(count) * size // count
    sums = np.add.reduceat(matrix, starts, axis=axis)
    lengths = np.diff(np.append(starts, size)).astype(np.float32)
    return sums / (lengths[:, None] if axis == 0 else lengths[None, :])
