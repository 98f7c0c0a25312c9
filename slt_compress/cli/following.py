"""Following: what is known of a running search, from the events it has told so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from slt_compress.searching.events import Advanced, Event, HeldOut, Part
from slt_compress.searching.state import Step
from slt_compress.storage.quantities import seconds_in_words

# Points of a series that are kept: enough for any sparkline. A longer one is halved.
_POINTS = 512
# Steps from which the time of the whole search is told: the first is slower than the others.
_TIMED = 3


@dataclass(slots=True)
class Following:
    """The state of a search as its events tell it.

    Attributes:
        part: what happens now, in plain words.
        done, total: how far that is, in steps or in pieces of a part; `total` is None if unknown.
        step: the last step, None before the first.
        losses, held_out: the series of the loss, and of the loss on the held-out slice.
        clock: seconds, as of `time.monotonic`.
    """

    clock: Callable[[], float] = time.monotonic
    part: str = "starting"
    is_searching: bool = False
    done: int = 0
    total: int | None = None
    step: Step | None = None
    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    _first: Step | None = None
    _began: float = 0.0

    def hear(self, event: Event) -> None:
        """Take an event in."""
        if isinstance(event, Part):
            self._begin(event)
        elif isinstance(event, Advanced):
            if not self.is_searching:
                if event.done < self.done:  # the part counts once more, as for the next control
                    self._began = self.clock()
                self.done, self.total = event.done, event.total
        elif isinstance(event, HeldOut):
            _append(self.held_out, event.loss)
        elif isinstance(event, Step):
            if self.step is not None and event.index <= self.step.index:
                self._restart()  # the next search of a comparison
            self._first = self._first or event
            self.step = event
            self.part, self.is_searching = "searching", True
            self.done, self.total = event.index + 1, event.total
            _append(self.losses, event.loss)

    def _begin(self, part: Part) -> None:
        if part.name == "open":
            self._restart()
        self.part, self._began = part.title, self.clock()
        self.is_searching = part.name in ("search", "select")
        if self.is_searching and self.step is not None:
            self.done, self.total = self.step.index + 1, self.step.total
        else:
            self.done, self.total = 0, None

    def _restart(self) -> None:
        self.step = self._first = None
        self.losses.clear()
        self.held_out.clear()

    @property
    def pace(self) -> float | None:
        """Seconds of a step, from those after the first of this run; None before there are two."""
        first, last = self._first, self.step
        if first is None or last is None or last.index < first.index + _TIMED - 1:
            return None
        return (last.seconds - first.seconds) / (last.index - first.index)

    @property
    def seconds_left(self) -> float | None:
        """Until the end of what `done` and `total` count; None if that cannot be told yet."""
        if self.total is None or self.done <= 0:
            return None
        left = self.total - self.done
        if self.is_searching:
            return None if self.pace is None else self.pace * left
        return (self.clock() - self._began) / self.done * left

    def left(self) -> str:
        """The time left in words; empty if that cannot be told."""
        seconds = self.seconds_left
        return "" if seconds is None else f"{seconds_in_words(max(0.0, seconds))} left"

    def time_line(self) -> str | None:
        """How long all steps take, once the first ones are timed; None at any other step."""
        first, last, pace = self._first, self.step, self.pace
        if first is None or last is None or pace is None or last.index != first.index + _TIMED - 1:
            return None
        left = last.total - last.index - 1
        return (
            f"about {seconds_in_words(pace * left)} for the other {left:,} steps, and as long as "
            "the measurements after them take (from two timed steps)"
        )

    def figures(self) -> tuple[str, ...]:
        """The figures of the last step: sparsity, loss, and accuracy where the task has it."""
        step = self.step
        if step is None:
            return ()
        figures = [
            f"sparsity {1 - step.density:.3f} → {1 - step.target:.4g}", f"loss {step.loss:.4f}"
        ]  # fmt: skip
        if self.held_out:
            figures.append(f"held-out {self.held_out[-1]:.4f}")
        if step.soft_metric is not None:
            figures.append(f"batch score {step.soft_metric:.3f}")
        return tuple(figures)


def _append(series: list[float], value: float) -> None:
    series.append(value)
    if len(series) > _POINTS:
        series[:] = [(a + b) / 2 for a, b in zip(series[::2], series[1::2], strict=False)]
