"""Events: what a running search tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from slt_compress.searching.state import Step

PartName = Literal[
    "open", "dense", "start", "search", "select", "polish", "controls", "soft", "mask", "write"
]
# In the order in which a search comes to them; `search` and `select` take turns.
PARTS: Mapping[PartName, str] = MappingProxyType({
    "open": "opening the model and its data",
    "start": "computing the first scores",
    "dense": "measuring the dense network",
    "search": "searching",
    "select": "measuring on the held-out slice",
    "polish": "polishing the mask",
    "controls": "measuring the controls",
    "soft": "measuring the soft gates",
    "mask": "measuring the mask",
    "write": "writing the ticket",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the search begins, and lasts until the next one does; one may be left out."""

    name: PartName

    @property
    def title(self) -> str:
        """What happens in it, in plain words."""
        return PARTS[self.name]


@dataclass(frozen=True, slots=True)
class Advanced:
    """`done` pieces of the present part are through, of `total` if that is known.

    They are the batches of a measurement, or the blocks of a network that `swaps` goes through. A
    part may count several times: `controls` does so for each control.
    """

    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The loss of the mask of step `index`, counted from 0, on the held-out slice.

    The record of that step follows it.
    """

    index: int
    loss: float


@dataclass(frozen=True, slots=True)
class Result:
    """The mask is made and measured: metrics by model, and the share of weights it removes."""

    metrics: Mapping[str, Mapping[str, float] | None]
    sparsity: float


Event = Part | Advanced | HeldOut | Step | Result
OnEvent = Callable[[Event], None]


def unheard(event: Event) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Watched:
    """Pieces of work that tell how many of them are done, each when the next one is asked for."""

    pieces: Iterable[Any]
    tell: OnEvent

    def __iter__(self) -> Iterator[Any]:
        count = getattr(self.pieces, "__len__", None)
        total = None if count is None else int(count())
        for done, piece in enumerate(self.pieces, start=1):
            yield piece
            self.tell(Advanced(done, total))
