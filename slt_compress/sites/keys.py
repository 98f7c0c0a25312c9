"""Keys: what the weights of several sites are ranked by, gone through a piece at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# Elements in a piece: its comparisons stay in the cache.
PIECE = 1 << 16
Array = np.ndarray[Any, Any]
Exact = Callable[[str, Array], Array]


class Keys(Protocol):
    """The scores of several sites, or something coarser that never contradicts their order.

    Attributes:
        sizes: how many keys each site has.
        exact: the scores (fp64) of a site at some places, which tell equal keys apart; None where
            equal keys are equal scores.
    """

    sizes: Mapping[str, int]
    exact: Exact | None

    def sample(self, name: str, step: int) -> Array:
        """Every `step`-th key of a site, as a copy."""

    def between(self, name: str, low: float, high: float) -> tuple[int, Array]:
        """How many keys of a site are below `low`, and a copy of those from `low` to `high`."""

    def above(self, name: str, value: float) -> Tensor:
        """Which keys of a site are above `value` (bool, flat, CPU)."""

    def places(self, name: str, value: float) -> Array:
        """Where the keys of a site equal `value`, ascending."""


class HostKeys:
    """Keys that are seen on the CPU, made of flat tensors by a function of their pieces."""

    def __init__(
        self,
        flats: Mapping[str, Tensor],
        key: Callable[[Tensor], Tensor],
        exact: Exact | None = None,
    ) -> None:
        self.sizes: Mapping[str, int] = {n: flat.numel() for n, flat in flats.items()}
        self.exact = exact
        self._flats, self._key = flats, key

    def _pieces(self, name: str) -> Iterator[Array]:
        flat = self._flats[name]
        for start in range(0, flat.numel(), PIECE):
            yield self._key(flat[start : start + PIECE]).numpy()

    def sample(self, name: str, step: int) -> Array:
        """The keys of some elements."""
        return self._key(self._flats[name][::step].clone()).numpy()

    def between(self, name: str, low: float, high: float) -> tuple[int, Array]:
        """One pass; NaN is in neither."""
        below, inside = 0, []
        for piece in self._pieces(name):
            under, within = piece < low, piece <= high
            within ^= under
            below += int(np.count_nonzero(under))
            inside.append(piece[within])
        return below, np.concatenate(inside) if inside else np.empty(0)

    def above(self, name: str, value: float) -> Tensor:
        """One pass."""
        mask, start = np.empty(self.sizes[name], dtype=np.bool_), 0
        for piece in self._pieces(name):
            np.greater(piece, value, out=mask[start : start + piece.size])
            start += piece.size
        return torch.from_numpy(mask)

    def places(self, name: str, value: float) -> Array:
        """One pass."""
        places, start = [np.empty(0, dtype=np.int64)], 0
        for piece in self._pieces(name):
            places.append(np.flatnonzero(piece == value) + start)
            start += piece.size
        return np.concatenate(places)


class DeviceKeys:
    """Scores on an accelerator, which are their own keys: only what is looked for leaves it."""

    def __init__(self, flats: Mapping[str, Tensor]) -> None:
        self.sizes: Mapping[str, int] = {n: flat.numel() for n, flat in flats.items()}
        self.exact: Exact | None = None
        self._flats = flats

    def sample(self, name: str, step: int) -> Array:
        """A copy on the CPU."""
        return self._flats[name][::step].cpu().numpy()

    def between(self, name: str, low: float, high: float) -> tuple[int, Array]:
        """One pass; NaN is in neither."""
        flat = self._flats[name]
        inside = flat[(flat >= low) & (flat <= high)].cpu().numpy()
        return int((flat < low).count_nonzero()), inside

    def above(self, name: str, value: float) -> Tensor:
        """One pass."""
        return (self._flats[name] > value).cpu()

    def places(self, name: str, value: float) -> Array:
        """One pass."""
        return (self._flats[name] == value).nonzero().reshape(-1).cpu().numpy()


class Streamed(Mapping[str, Tensor], ABC):
    """Scores of each site that are made when they are looked up, and ranked without that.

    Attributes:
        weights: what they are made of, in their shape; NaN there is NaN in the scores.
    """

    weights: Mapping[str, Tensor]

    @abstractmethod
    def ranked_by(self) -> Keys:
        """What ranks them."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def keys_of(scores: Mapping[str, Tensor]) -> Keys:
    """What ranks the scores: themselves, unless they are made when they are looked up.

    Scores that are narrower than fp32 are ranked as fp32.
    """
    if isinstance(scores, Streamed):
        return scores.ranked_by()
    flats = {name: score.detach().reshape(-1) for name, score in scores.items()}
    if any(flat.device.type != "cpu" for flat in flats.values()):
        return DeviceKeys({name: wide(flat) for name, flat in flats.items()})
    return HostKeys(flats, wide)


def wide(flat: Tensor) -> Tensor:
    """Scores in fp32 if they are narrower, else as they are."""
    return flat.float() if flat.element_size() < torch.float32.itemsize else flat
