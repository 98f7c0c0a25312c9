"""What every test runs under: one thread, and no network but the loopback."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, and sums come out the same on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _is_local(family: int, address: Any) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = address[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guard(self: socket.socket, address: Any) -> Any:
        if not _is_local(self.family, address):
            raise OSError(f"a test tried to reach {address}: tests use no network")
        return connect(self, address)

    return guard


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", _guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", _guarded(socket.socket.connect_ex))
        yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured in a test is kept for the tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLT_COMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_accelerator_left() -> Iterator[None]:
    """A Trainer leaves accelerate's state to the process, where other tests would find it."""
    yield
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for shared in (AcceleratorState, GradientState, PartialState):
        shared._reset_state()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pico checkpoints as their libraries save them, by name."""
    import pico

    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "vit": pico.save_vit(root / "vit"),
        "bert": pico.save_bert(root / "bert"),
        "gpt2": pico.save_gpt2(root / "gpt2"),
        "llama": pico.save_llama(root / "llama"),
        "mixtral": pico.save_mixtral(root / "mixtral"),
        "resnet": pico.save_timm("test_resnet", root / "resnet"),
        "convnext": pico.save_timm("test_convnext", root / "convnext"),
    }


@pytest.fixture(scope="session")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny data sets on disk, by what they hold."""
    import pico

    root = tmp_path_factory.mktemp("data")
    return {
        "pictures": str(pico.save_pictures(root / "pictures")),
        "reviews": str(pico.save_reviews(root / "reviews")),
        "scores": str(pico.save_scores(root / "scores")),
        "prose": str(pico.save_prose(root / "prose")),
    }
