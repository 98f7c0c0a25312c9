"""The state of a search is a value: steps can be taken again, and gone on with elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn

from slt_compress.gates import METHODS, Learned
from slt_compress.gates.gating import gated
from slt_compress.searching.accelerators import accelerator_for
from slt_compress.searching.settings import Training
from slt_compress.searching.state import Drawn, Position, SearchState, copied, draw
from slt_compress.searching.training import Engine, Loop, engine_for, walk
from slt_compress.searching.workloads import own_workload
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import find_sites

LEARNED = [name for name, method in METHODS.items() if isinstance(method(), Learned)]
SETTINGS = {
    "adam": Training(steps=12, batch_size=8, lr=0.05, optimizer="adam", device="cpu"),
    "sgd": Training(steps=12, batch_size=8, lr=0.1, optimizer="sgd", ema=0.0, device="cpu"),
}


def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
    return (module(batch) - batch.sum(1, keepdim=True)).square().mean()


def batches(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(8, 6, generator=generator) for _ in range(count)]


@contextmanager
def engine(training: Training, method: str = "relaxed", start: float = 0.0) -> Iterator[Engine]:
    """An engine over a small network whose first scores lie around `start`."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 1))
    plan, data, gate = (
        find_sites(module),
        own_workload(module, batches(), loss_fn),
        METHODS[method](),
    )
    scores = {
        site.name: gate.start(torch.zeros(site.shape), None, 7) + start for site in plan.sites
    }
    with (
        gated(module, plan, method=gate, scores=scores) as gates,
        accelerator_for(training) as accelerator,
    ):
        loop = Loop(
            module=module, plan=plan, gates=gates, method=gate, budget=Budget(density=0.4),
            objective=data.objective, batches=data.train, start_density=0.8, training=training,
        )  # fmt: skip
        with engine_for(loop, accelerator) as made:
            yield made


def content(state: SearchState) -> tuple[Any, ...]:
    """Everything of a state that two equal runs have in common, down to the bits."""
    latest = None if state.last is None else replace(state.last, seconds=0.0)
    tensors = [state.scores, state.mean, *state.optimizer.values()]
    return (
        [{key: value.tolist() for key, value in kept.items()} for kept in tensors],
        state.shifts, state.position, latest,
    )  # fmt: skip


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("optimizer", SETTINGS)
def test_a_step_from_the_same_state_is_the_same_step(method: str, optimizer: str) -> None:
    with engine(SETTINGS[optimizer], method) as made:
        states = [copied(state) for state in walk(made)]
        drawn = list(islice(draw(made.loop.batches, Position()), len(states)))
        again = made.step(copied(states[4]), drawn[5])
        assert content(again) == content(states[5])


@pytest.mark.parametrize("optimizer", SETTINGS)
def test_another_engine_goes_on_from_a_state(optimizer: str) -> None:
    """Nothing that a step needs lies outside the state: an engine of other scores ends the same."""
    training = SETTINGS[optimizer]
    with engine(training) as made:
        states = [copied(state) for state in walk(made)]
    with engine(training, start=0.3) as other:
        ends = list(walk(other, copied(states[6])))
        assert len(ends) == len(states) - 7
        assert content(ends[-1]) == content(states[-1])


def test_a_step_takes_the_tensors_over_and_a_copy_keeps_them() -> None:
    with engine(SETTINGS["adam"]) as made:
        first = made.loop.first_state()
        kept = copied(first)
        with pytest.raises(LookupError, match="no step"):
            _ = first.latest
        second = next(walk(made, first))
        assert all(second.scores[n].data_ptr() == s.data_ptr() for n, s in first.scores.items())
        assert not torch.equal(second.scores["0.weight"], kept.scores["0.weight"])
        assert (first.steps, second.steps, kept.over) == (0, 1, False)


def test_batches_go_on_from_a_position() -> None:
    data = own_workload(nn.Linear(6, 1), batches(4), loss_fn).train
    whole = list(islice(draw(data, Position()), 10))
    assert [drawn.after for drawn in whole[:4]] == [
        Position(epoch=0, batch=1), Position(epoch=0, batch=2), Position(epoch=0, batch=3),
        Position(epoch=1, batch=1),
    ]  # fmt: skip
    for index, drawn in enumerate(whole[:-1]):
        following: Drawn = next(draw(data, drawn.after))
        assert torch.equal(following.batch, whole[index + 1].batch)


def test_the_search_ends_where_its_last_step_says() -> None:
    with engine(replace(SETTINGS["adam"], steps=3)) as made:
        assert [state.over for state in walk(made)] == [False, False, True]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_accelerator_of_the_host_program_never_notices(precision: Any) -> None:
    host = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=4)
    try:
        with engine(replace(SETTINGS["adam"], precision=precision)) as made:
            assert made.accelerator.mixed_precision == precision
            assert list(walk(made))
        assert host.mixed_precision == "bf16"
        assert host.gradient_accumulation_steps == 4
        assert host.device.type == "cpu"
        assert AcceleratorState._shared_state["_mixed_precision"] == "bf16"
        assert Accelerator(mixed_precision="bf16").state.mixed_precision == "bf16"
    finally:
        for shared in (AcceleratorState, GradientState, PartialState):
            shared._reset_state()


def test_no_accelerator_state_is_left_where_there_was_none() -> None:
    with pytest.raises(ZeroDivisionError), engine(SETTINGS["adam"]):
        raise ZeroDivisionError
    assert not AcceleratorState._shared_state
    assert not GradientState._shared_state


def test_the_environment_cannot_divide_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> Any:
        with engine(SETTINGS["adam"]) as made:
            return content([copied(state) for state in walk(made)][-1])

    plain = end()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert end() == plain
