"""Streamed scores: those of magnitude, ranked by the weights themselves instead of copies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from slt_compress.gates.one_shot import Magnitude, jittered
from slt_compress.sites.keys import Array, HostKeys, Keys, Streamed, wide
from slt_compress.storage.freeing import released
from slt_compress.storage.lazy import LazyMapping

# Random numbers that are drawn at once.
_PIECE = 1 << 20


class MagnitudeScores(Streamed):
    """The scores of `Magnitude`, a site at a time; `keys` order equal weights.

    In fp32 the absolute value never contradicts the score, so that it ranks the weights. Scores
    are made of those alone that equal the value on the boundary.
    """

    def __init__(self, *, weights: Mapping[str, Tensor], keys: Mapping[str, int]) -> None:
        self.weights = weights
        self._keys = keys

    def __getitem__(self, name: str) -> Tensor:
        return Magnitude().score(self.weights[name], self._keys[name])

    def ranked_by(self) -> Keys:
        """The absolute values."""
        return HostKeys(_flat(self.weights), _size, self._exact)

    def _exact(self, name: str, places: Array) -> Array:
        flat = self.weights[name].detach().reshape(-1)
        size = _size(flat[torch.from_numpy(places)]).double()
        jitter = _drawn(flat.numel(), self._keys[name], places)
        return jittered(size, torch.from_numpy(jitter)).numpy()


class MadeScores(Streamed):
    """Scores that a function makes of the name of their site, every time anew.

    The scores of one site are in memory at a time.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self.weights = LazyMapping(names, released(make))

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[name]

    def ranked_by(self) -> Keys:
        """The scores."""
        return HostKeys(_flat(self.weights), wide)


def _flat(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return LazyMapping(tensors, lambda name: tensors[name].detach().reshape(-1))


def _size(piece: Tensor) -> Tensor:
    return piece.float().cpu().abs()


def _drawn(count: int, key: int, places: Array) -> Array:
    """Some of `count` uniform numbers (fp64), which are drawn in order and not kept."""
    generator = torch.Generator().manual_seed(key)
    ends = np.searchsorted(places, np.arange(_PIECE, count + _PIECE, _PIECE))
    parts, first = [], 0
    for number, last in enumerate(ends):
        size = min(_PIECE, count - number * _PIECE)
        drawn = torch.rand(size, generator=generator, dtype=torch.float64).numpy()
        parts.append(drawn[places[first:last] - number * _PIECE])
        first = last
    return np.concatenate(parts)
