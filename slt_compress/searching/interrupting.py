"""Interrupts that wait for the end of a step, so that a search stops with its progress saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Interrupted(SystemExit):
    """A search was asked to stop, and its progress is saved; the code is that of the signal.

    Attributes:
        folder: where the progress is.
    """

    def __init__(self, signum: int, folder: Path) -> None:
        super().__init__(128 + signum)
        self.folder = folder


class Steps:
    """The steps of one search, which an interrupt may end between two of them."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def stop_if_asked(self, folder: Path) -> None:
        """End the search here, if a signal has asked for it; the progress goes to `folder`.

        Raises:
            Interrupted: one has.
        """
        if self.asked is not None:
            raise Interrupted(self.asked, folder)


_running: list[Steps] = []


@contextmanager
def stopping_between_steps() -> Iterator[Steps]:
    """Inside this block the first interrupt waits for the end of the step (`ask_to_stop`)."""
    steps = Steps()
    _running.append(steps)
    try:
        yield steps
    finally:
        _running.remove(steps)


def ask_to_stop(signum: int) -> bool:
    """Ask the running search to stop after its step; false where none is at its steps."""
    for steps in _running:
        steps.asked = signum
    return bool(_running)
