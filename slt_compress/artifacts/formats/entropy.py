"""Entropy-coded masks without values: as many bits as their densities leave open.

All probabilities are fractions of 65,536, so that every machine decodes the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import constriction
import numpy as np
import torch
from torch import Tensor

from slt_compress.artifacts.formats.base import as_matrix
from slt_compress.errors import ArtifactError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WHOLE = 1 << 16  # the probability 1; as a frequency: everything in the block is kept
_CLASSES = 16  # classes of rows or of columns, at most
_SLACK = 1.0005  # the most that the coder's rounding of probabilities costs
_UNCOUNTED = 1 << 22  # weights of masks that are decoded at once, whatever their stream
_SPARSEST = 256  # weights per byte of a stream from which they are counted before
_SPLITS = (1, 4, _CLASSES)  # numbers of classes that the writer tries


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    """Densities of a matrix whose rows and columns fall into classes, one for each pair of classes.

    Attributes:
        rows: class of every row, int64.
        columns: class of every column, int64.
        frequencies: of a kept weight, in 65,536ths, [row classes, column classes].
    """

    rows: NDArray[Any]
    columns: NDArray[Any]
    frequencies: NDArray[Any]

    def blocks(self) -> Iterator[tuple[slice, slice, int]]:
        """Where the pairs of classes lie once rows and columns are sorted by class."""
        bounds = [
            np.concatenate(([0], np.cumsum(np.bincount(classes, minlength=count))))
            for classes, count in zip(
                (self.rows, self.columns), self.frequencies.shape, strict=True
            )
        ]
        for i, j in np.ndindex(*self.frequencies.shape):
            frequency = int(self.frequencies[i, j])
            yield slice(*bounds[0][i : i + 2]), slice(*bounds[1][j : j + 2]), frequency


def encode_masks(masks: Iterable[Tensor]) -> Tensor:
    """Encode masks as one stream, uint8 [4 * words] of little-endian 32-bit words."""
    coder = constriction.stream.queue.RangeEncoder()
    for mask in masks:
        matrix = mask.cpu().contiguous().reshape(as_matrix(tuple(mask.shape))).numpy()
        if not matrix.size:
            continue
        model = _fit(matrix)
        _encode_model(coder, model)
        order = np.argsort(model.rows, kind="stable"), np.argsort(model.columns, kind="stable")
        ordered = _ordered(matrix, *order)
        for rows, columns, frequency in model.blocks():
            block = ordered[rows, columns].reshape(-1).astype(np.int32)
            if block.size and 0 < frequency < _WHOLE:
                coder.encode(block, _bernoulli(frequency))
    words = np.asarray(coder.get_compressed(), dtype="<u4")
    return torch.from_numpy(words.view(np.uint8).copy())


def decode_masks(stream: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Undo `encode_masks` for masks of these shapes, which are those of weights that exist.

    Raises:
        ArtifactError: the stream does not hold masks of these shapes.
    """
    if stream.dtype is not torch.uint8 or stream.dim() != 1 or len(stream) % 4:
        raise ArtifactError(
            f"has masks of {tuple(stream.shape)} {stream.dtype}, not a whole number of words"
        )
    words = stream.numpy().view("<u4").astype(np.uint32)
    coder = constriction.stream.queue.RangeDecoder(words)
    try:
        if sum(map(math.prod, shapes)) > max(_UNCOUNTED, _SPARSEST * len(stream)):
            _expect_end(constriction.stream.queue.RangeDecoder(words), shapes)
        masks = [torch.from_numpy(_decode(coder, shape)).reshape(shape) for shape in shapes]
        over = bool(coder.maybe_exhausted())
    except (AssertionError, ValueError, RuntimeError) as cause:
        raise ArtifactError(f"has masks that cannot be decoded ({cause})") from cause
    if not over:
        raise ArtifactError("has more data in its masks than the weights of its sites")
    return masks


def _expect_end(coder: Any, shapes: Sequence[tuple[int, ...]]) -> None:
    """Go through a stream of very large masks without room for them, to see that it fits.

    Raises:
        ArtifactError: it ends early, or holds more.
    """
    for shape in shapes:
        rows, columns = as_matrix(shape)
        if not rows * columns:
            continue
        for block in _decode_model(coder, rows, columns).blocks():
            left = (block[0].stop - block[0].start) * (block[1].stop - block[1].start)
            while 0 < block[2] < _WHOLE and left > 0:
                left -= len(coder.decode(_bernoulli(block[2]), min(left, _UNCOUNTED)))
    if not coder.maybe_exhausted():
        raise ArtifactError("has more in its masks than the weights of its sites")


def entropy_bits(total: int, kept: int) -> float:
    """Bits of a mask of which only its density is known: n · H(kept / n)."""
    if not 0 < kept < total:
        return 0.0
    density = kept / total
    return -total * (density * math.log2(density) + (1 - density) * math.log2(1 - density))


def coded_nbytes(total: int, kept: int) -> int:
    """The most bytes that one coded mask takes if only its density is known."""
    if not total:
        return 0
    sizes, counts = np.array([[total]]), np.array([[kept]])
    plain = np.zeros(0, dtype=np.int64)
    model = _Model(rows=plain, columns=plain, frequencies=_frequencies(counts, sizes))
    # Plus the numbers of classes, and the words that the coder ends with.
    return 4 * (math.ceil((_bits(model, counts, sizes) * _SLACK + 9) / 32) + 1)


def _decode(coder: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    rows, columns = as_matrix(shape)
    matrix = np.zeros((rows, columns), dtype=bool)
    if not matrix.size:
        return matrix
    model = _decode_model(coder, rows, columns)
    ordered = np.zeros_like(matrix)
    for place in model.blocks():
        block = ordered[place[:2]]
        if place[2] == _WHOLE:
            block[...] = True
        elif block.size and place[2] > 0:
            block[...] = coder.decode(_bernoulli(place[2]), block.size).reshape(block.shape)
    if model.frequencies.size == 1:
        return ordered
    order = np.argsort(model.rows, kind="stable"), np.argsort(model.columns, kind="stable")
    matrix[np.ix_(*order)] = ordered
    return matrix


def _encode_model(coder: Any, model: _Model) -> None:
    counts = model.frequencies.shape
    coder.encode(np.array(counts, dtype=np.int32) - 1, _uniform(_CLASSES))
    for classes, count in zip((model.rows, model.columns), counts, strict=True):
        if count > 1:
            coder.encode(classes.astype(np.int32), _uniform(count))
    coder.encode(model.frequencies.reshape(-1).astype(np.int32), _uniform(_WHOLE + 1))


def _decode_model(coder: Any, rows: int, columns: int) -> _Model:
    counts = tuple(int(count) + 1 for count in coder.decode(_uniform(_CLASSES), 2))
    classes = [
        coder.decode(_uniform(count), size).astype(np.int64) if count > 1 else np.zeros(size, int)
        for size, count in zip((rows, columns), counts, strict=True)
    ]
    frequencies = coder.decode(_uniform(_WHOLE + 1), counts[0] * counts[1]).reshape(counts)
    return _Model(rows=classes[0], columns=classes[1], frequencies=frequencies)


def _fit(matrix: NDArray[Any]) -> _Model:
    """The model that takes the fewest bits for the matrix, of the splits that are tried."""
    by_row, by_column = (np.count_nonzero(matrix, axis=axis) for axis in (1, 0))
    rows, columns = _quantiles(by_row), _quantiles(by_column)
    kept = _summed(matrix, rows)  # for every column, in each class of rows
    pairs, sizes = (
        _summed(kept, columns),
        np.outer(np.bincount(rows, minlength=_CLASSES), np.bincount(columns, minlength=_CLASSES)),
    )

    def tried(split: tuple[int, int]) -> tuple[float, _Model]:
        here, of = _merged(pairs, split), _merged(sizes, split)
        model = _Model(
            rows=rows * split[0] // _CLASSES,
            columns=columns * split[1] // _CLASSES,
            frequencies=_frequencies(here, of),
        )
        return _bits(model, here, of), model

    splits = [(i, j) for i in _SPLITS for j in _SPLITS]
    return min((tried(split) for split in splits), key=lambda pair: pair[0])[1]


def _summed(matrix: NDArray[Any], classes: NDArray[Any]) -> NDArray[Any]:
    """Sum the rows of a matrix that share a class, int64 [columns, classes]."""
    sums = [matrix[classes == each].sum(axis=0, dtype=np.int64) for each in range(_CLASSES)]
    stacked: NDArray[Any] = np.stack(sums, axis=1)
    return stacked


def _quantiles(counts: NDArray[Any]) -> NDArray[Any]:
    """Divide lines into sixteen classes of equal size by how much of a line is kept."""
    classes = np.zeros(len(counts), dtype=np.int64)
    classes[np.argsort(counts, kind="stable")] = np.arange(len(counts)) * _CLASSES // len(counts)
    return classes


def _merged(pairs: NDArray[Any], split: tuple[int, int]) -> NDArray[Any]:
    """Sum the pairs of classes into fewer classes."""
    shape = (split[0], _CLASSES // split[0], split[1], _CLASSES // split[1])
    merged: NDArray[Any] = pairs.reshape(shape).sum(axis=(1, 3))
    return merged


def _frequencies(kept: NDArray[Any], sizes: NDArray[Any]) -> NDArray[Any]:
    """Densities in 65,536ths, rounded; 0 and 1 only where nothing or everything is kept."""
    rounded = (kept * _WHOLE + sizes // 2) // np.maximum(sizes, 1)
    inside = np.clip(rounded, 1, _WHOLE - 1)
    frequencies: NDArray[Any] = np.where(kept == 0, 0, np.where(kept == sizes, _WHOLE, inside))
    return frequencies


def _bits(model: _Model, kept: NDArray[Any], sizes: NDArray[Any]) -> float:
    """About how many bits the matrix takes, with the description of the model."""
    density = np.clip(model.frequencies, 1, _WHOLE - 1) / _WHOLE
    coded = (model.frequencies > 0) & (model.frequencies < _WHOLE)
    blocks = -(kept * np.log2(density) + (sizes - kept) * np.log2(1 - density))
    lines = zip((model.rows, model.columns), model.frequencies.shape, strict=True)
    side = sum(len(classes) * math.log2(count) for classes, count in lines)
    return float(blocks[coded].sum()) + side + 16 * model.frequencies.size


def _ordered(matrix: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
    ordered: NDArray[Any] = matrix[rows][:, columns]
    return ordered


def _bernoulli(frequency: int) -> Any:
    return constriction.stream.model.Bernoulli(frequency / _WHOLE, perfect=False)


def _uniform(size: int) -> Any:
    return constriction.stream.model.Uniform(size)
