"""Progress bars: a search as it runs, on the terminal or in a notebook of a Python program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm

from slt_compress.searching.events import Advanced, Event, HeldOut, OnEvent, Part, unheard
from slt_compress.searching.state import Step


@contextmanager
def heard(progress: bool | OnEvent) -> Iterator[OnEvent]:
    """Where the events of a search go: to a bar on stderr (True), nowhere (False), or a callback.

    The callback is called as often as there are steps and batches, so it has to be quick. What it
    raises ends the search, which can be continued.
    """
    if progress is False:
        yield unheard
    elif progress is True:
        with tqdm(leave=False, dynamic_ncols=True) as bar:
            yield _Shown(bar)
    else:
        yield progress


class _Shown:
    """Shows events on one bar: over the steps while searching, else over the batches of a part."""

    def __init__(self, bar: tqdm[None]) -> None:
        self._bar = bar
        self._held_out = ""

    def __call__(self, event: Event) -> None:
        bar = self._bar
        if isinstance(event, Part):
            bar.set_postfix_str("", refresh=False)
            bar.total = None
            bar.reset()
            bar.set_description_str(event.title)
        elif isinstance(event, HeldOut):
            self._held_out = f", held-out {event.loss:.4f}"
        elif isinstance(event, Advanced):
            self._at(event.done, event.total)
        elif isinstance(event, Step):
            bar.set_postfix_str(_figures(event) + self._held_out, refresh=False)
            self._at(event.index + 1, event.total)

    def _at(self, done: int, total: int | None) -> None:
        """`update` draws no more often than a terminal needs, and works from the rate."""
        self._bar.total = total
        if done < self._bar.n:  # a second measurement in the same part
            self._bar.reset(total)
        if not self._bar.update(done - self._bar.n) and done == total:
            self._bar.refresh()


def _figures(step: Step) -> str:
    return f"sparsity {1.0 - step.density:.3f} → {1.0 - step.target:.3f}, loss {step.loss:.4f}"
