"""A hub on loopback in a process of its own, for pushes that are killed and doubled."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from hub import Hub

REPOSITORY = "org/net"


@dataclass(frozen=True)
class Loopback:
    """The hub: its process, its address, and the folder with the repositories that it holds."""

    pid: int
    url: str
    uploads: Path

    @property
    def repository(self) -> Path:
        """The folder of the one repository that is pushed to."""
        return self.uploads / REPOSITORY

    def forget(self) -> None:
        """Remove the repository, as if nothing had been pushed."""
        os.kill(self.pid, signal.SIGUSR1)
        signal.sigtimedwait([signal.SIGUSR2], 10)

    def stop(self) -> None:
        """End the process."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def start(uploads: Path) -> Loopback:
    """Start a hub, and point the hub's client at it: before anything imports that client."""
    uploads.mkdir(parents=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])  # the answer of `forget`
    ready, told = os.pipe()
    parent, pid = os.getpid(), os.fork()
    if pid == 0:
        _serve(uploads, told, parent)
    os.close(told)
    url = os.read(ready, 100).decode()
    os.close(ready)
    os.environ |= {"HF_ENDPOINT": url, "HF_TOKEN": "hf_loopback", "HF_HUB_DISABLE_TELEMETRY": "1",
                   "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    return Loopback(pid=pid, url=url, uploads=uploads)


def _serve(uploads: Path, told: int, parent: int) -> None:
    """The child: never returns."""
    with Hub(uploads=uploads) as hub:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        hub.ignore_errors()  # clients that are killed
        os.write(told, hub.url.encode())
        while True:
            signal.sigwait([signal.SIGUSR1])
            hub.repositories.clear()
            shutil.rmtree(uploads / REPOSITORY, ignore_errors=True)
            os.kill(parent, signal.SIGUSR2)
