"""Interrupts: one line, the exit code that shells give to the signal, and time to clean up."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from slt_compress.searching.interrupting import Interrupted, ask_to_stop

_LINE = b"interrupted: nothing was left half-written\n"
_WAIT = b"stopping after this step, to save the progress; once more stops at once\n"
_SAVED = "interrupted: the same command goes on from here, or slt-compress search --resume {}\n"
_HEAVY = ("torch", "slt_compress.api")  # what a command imports before it does anything
# Seconds that cleaning up may take before a further signal is heard again.
_PATIENCE = 5


class _Stopper:
    """What SIGINT and SIGTERM do: the first one ends the process through every `finally`.

    In the steps of a search it waits for the end of the step, and the second one ends the process.
    """

    def __init__(self, *, is_process: bool) -> None:
        self.heard = 0
        self._is_process = is_process
        self._asked = False
        self._at = 0.0

    def __call__(self, signum: int, frame: object) -> None:
        """Say so and leave; what comes while that cleans up does not cut it short."""
        if not self.heard and not self._asked and ask_to_stop(signum):
            self._asked = True
            with suppress(OSError):
                os.write(2, _WAIT)
            return
        waited = time.monotonic() - self._at
        if not self.heard:
            self.heard, self._at = signum, time.monotonic()
            with suppress(OSError):
                os.write(2, _LINE)  # `print` may be in the middle of a line of its own
            if self._is_process and _is_starting():
                os._exit(128 + signum)
            # what is raised in a destructor or a callback is lost: it is then raised once more
            signal.alarm(_PATIENCE)
        elif signum != signal.SIGALRM and waited < _PATIENCE:
            return
        elif waited > 3 * _PATIENCE:
            os._exit(128 + self.heard)
        raise SystemExit(128 + self.heard)


def _is_starting() -> bool:
    """Whether the heavy imports are not over: nothing is there to clean up yet.

    An exception in the middle of torch's C++ start can abort the process instead of ending it.
    """
    specs = [getattr(sys.modules.get(name), "__spec__", None) for name in _HEAVY]
    return any(getattr(spec, "_initializing", False) for spec in specs)


def is_stopping() -> bool:
    """Whether a signal has begun to end this process."""
    stopper = signal.getsignal(signal.SIGALRM)
    return isinstance(stopper, _Stopper) and stopper.heard > 0


@contextmanager
def signals_heard(*, is_process: bool) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into one line and an exit code for the length of the block.

    Args:
        is_process: whether the block is all that this process does: signals that come when it is
            over are then ignored, as nothing is left that they could stop.
    """
    stopper, unraisable = _Stopper(is_process=is_process), sys.unraisablehook

    def tell(lost: sys.UnraisableHookArgs) -> None:
        """What Python tells of an exception in a callback, but for that of a signal."""
        if not (stopper.heard and isinstance(lost.exc_value, SystemExit)):
            unraisable(lost)

    sys.unraisablehook = tell
    heard = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, stopper) for signum in (*heard, signal.SIGALRM)}
    try:
        yield
    except Interrupted as cause:
        with suppress(OSError):
            os.write(2, _SAVED.format(shlex.quote(str(cause.folder))).encode())
        raise
    except BaseException as cause:
        # whatever a library made of the exception that was raised in the middle of it
        if stopper.heard and not (isinstance(cause, SystemExit) and cause.code in (0, None)):
            sys.exit(128 + stopper.heard)
        raise
    finally:
        signal.alarm(0)
        sys.unraisablehook = unraisable
        for signum, handler in before.items():
            signal.signal(signum, signal.SIG_IGN if is_process else handler)
