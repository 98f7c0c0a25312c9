"""Trackers: the events of a search handed to tensorboard, wandb and others, through accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import RecipeError, SltError
from slt_compress.searching.events import Event, HeldOut, Part, Result
from slt_compress.searching.state import Step
from slt_compress.storage.similar import did_you_mean

FOLDER = Path("runs")
"""Where trackers that write files put them."""


class Trackers:
    """Some trackers, as a listener to the events of a search.

    They open with the first event and close with the result: accelerate lets them log only while
    it has a state, which a search gives it for its own length.
    """

    def __init__(
        self, names: Sequence[str], run: str, config: Mapping[str, Any], folder: Path
    ) -> None:
        self._names, self._run, self._folder = names, run, folder
        self._config = dict(_flat(config))
        self._opened: list[Any] = []
        self._last = 0

    def __call__(self, event: Event) -> None:
        """Log a step, the loss on the held-out slice, or what the search ended with.

        Raises:
            SltError: a tracker is not installed, or does not start.
        """
        if isinstance(event, Part) and event.name == "open":
            self._opened += [
                _open(name, self._run, self._config, self._folder) for name in self._names
            ]
        elif isinstance(event, HeldOut):
            self._last = event.index + 1
            self._log({"held_out_loss": event.loss})
        elif isinstance(event, Step):
            self._last = event.index + 1
            score = {} if event.soft_metric is None else {"batch_score": event.soft_metric}
            self._log({"loss": event.loss, "sparsity": 1.0 - event.density, **score})
        elif isinstance(event, Result):
            self._log({"achieved_sparsity": event.sparsity, **dict(_flat(event.metrics, mark="/"))})
            self.finish()

    def finish(self) -> None:
        """Close the trackers; those of a search that ended early too, as far as they allow it."""
        for tracker in self._opened:
            with quiet(), suppress(Exception):
                tracker.finish()
        self._opened.clear()

    def _log(self, values: Mapping[str, float]) -> None:
        for tracker in self._opened:
            tracker.log(dict(values), step=self._last)


@contextmanager
def tracked(
    names: Sequence[str], run: str, config: Mapping[str, Any], folder: Path = FOLDER
) -> Iterator[Trackers]:
    """Trackers by their names in accelerate, closed after the block at the latest.

    Args:
        names: such as `tensorboard` or `wandb`.
        run: name of the run, or of the project where a tracker has projects.
        config: nested settings, which are logged flat.
        folder: for trackers that write files.

    Raises:
        RecipeError: a name is unknown.
    """
    for name in names:
        if name not in _known():
            raise RecipeError(
                f"unknown tracker {name!r}; known: {', '.join(_known())}"
                f"{did_you_mean(name, _known())}"
            )
    trackers = Trackers(names, run, config, folder)
    try:
        yield trackers
    finally:
        trackers.finish()


def _known() -> dict[str, Any]:
    return {str(key): kind for key, kind in LOGGER_TYPE_TO_CLASS.items()}


def _open(name: str, run: str, config: dict[str, Any], folder: Path) -> Any:
    kind = _known()[name]
    where = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
    try:
        with quiet():
            tracker = kind(run, **where)
            # of several processes only the first one hears events, so none has to be asked for
            tracker.main_process_only = False
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(config)
    except ImportError as error:
        raise SltError(
            f"the tracker {name} is not installed ({error}): pip install {name.split('_')[0]}"
        ) from error
    except Exception as error:  # each tracker has its own errors for keys, networks and projects
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise SltError(f"the tracker {name} does not start: {reason}") from error
    return tracker


def _flat(content: Mapping[str, Any], path: str = "", mark: str = ".") -> Iterator[tuple[str, Any]]:
    """Dotted keys, and values that any tracker takes."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}{mark}", mark)
        elif isinstance(value, bool | int | float | str):
            yield f"{path}{key}", value
        elif value is not None:
            yield f"{path}{key}", str(value)
