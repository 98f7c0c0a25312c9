"""Runs of the command line in forked children: the imports are paid for once."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

COMMON = ["--quiet", "--set", "evaluation.limit=100"]
LENET = ["lenet-300-100", "--init", "random", "--dataset", "digits", "--target-sparsity", "0.9",
         "--steps", "6", "--batch-size", "16"]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or minus the signal that killed it; and its output."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def is_clean(self) -> bool:
        """Whether nothing of Python's own error reports shows."""
        return not any(
            word in self.err for word in ("Traceback", "Exception ignored", "reentrant", "Fatal")
        )


class Child:
    """A command line at work in a process of its own."""

    def __init__(
        self,
        folder: Path,
        arguments: list[str],
        *,
        limits: Mapping[int, int] | None = None,
        before: Callable[[], None] | None = None,
        fresh: bool = False,
    ) -> None:
        """A `fresh` one imports everything itself, as a user's command does."""
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder.parent / f"{folder.name}.{os.urandom(4).hex()}.{n}" for n in "oe"]
        ready, started = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _run(folder, arguments, self._files, started, limits or {}, before, fresh)
        os.close(started)
        os.read(ready, 1)  # signal handlers are set, or another program runs
        os.close(ready)
        self._started = time.monotonic()

    def send(self, signum: int) -> None:
        """Send a signal, where the process is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signum)

    def wait(self, timeout: float = 120.0) -> Ended:
        """How it ended; one that hangs is killed, with code -9."""
        until = time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                _, status = os.waitpid(self.pid, 0)
                break
            time.sleep(0.002)
        texts = [file.read_text(errors="replace") for file in self._files]
        for file in self._files:
            file.unlink()
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, *texts, seconds=time.monotonic() - self._started)


def _run(
    folder: Path,
    arguments: list[str],
    files: list[Path],
    started: int,
    limits: Mapping[int, int],
    before: Callable[[], None] | None,
    fresh: bool,
) -> None:
    """The child: never returns."""
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    if fresh:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-m", "slt_compress", *arguments])
    sys.argv = ["slt-compress", *arguments]
    code = 70
    try:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        for limit, value in limits.items():
            resource.setrlimit(limit, (value, value))
        if before is not None:
            before()
        from slt_compress.cli import app
        from slt_compress.cli.stopping import signals_heard

        with signals_heard(is_process=True):
            os.write(started, b"x")
            app.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def preload() -> None:
    """Import once what every run needs, with one thread, so that children may be forked."""
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    import slt_compress.api
    import slt_compress.cli.app
    import slt_compress.cli.console
    import slt_compress.cli.pushing
    import slt_compress.cli.stopping
    import slt_compress.exporting.folders
    import slt_compress.exporting.pushing
    import slt_compress.tickets.deriving
    import slt_compress.tickets.importing  # noqa: F401


def run(folder: Path, arguments: list[str], **options: object) -> Ended:
    """One run to its end."""
    return Child(folder, arguments, **options).wait()  # type: ignore[arg-type]
