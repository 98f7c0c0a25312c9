"""Modules of any parts are what they were after every verb, and after a verb that failed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import OLD, PARTS, SIZE, STATES, differences, whole
from torch import Tensor, nn

import slt_compress
from slt_compress import Budget, Training
from slt_compress.anatomy.copies import copy_of
from slt_compress.anatomy.remembering import remember, unchanged
from slt_compress.gates import Magnitude, Method, Relaxed

METHODS: tuple[Callable[[], Method], ...] = (Relaxed, Magnitude)
FORMATS = ("bitmask", "mask", "dense")


class StopError(Exception):
    """What a forward pass of the user's own may raise."""


def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = module(batch).square().mean()
    return loss


def made(names: list[str], seed: int) -> nn.Module:
    """A module with these parts, modes and flags of all kinds, and one layer that can be gated."""
    torch.manual_seed(seed)
    module = nn.Sequential(*(PARTS[name]() for name in names), nn.Linear(SIZE, SIZE))
    module.train(bool(seed % 2))
    for index, child in enumerate(module):
        child.train((seed >> index) % 2 == 0)
    for index, parameter in enumerate(module.parameters()):
        parameter.requires_grad_((seed >> index) % 3 != 0)
    return module


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, SIZE, generator=generator) for _ in range(3)]


def searched(module: nn.Module, out: Path, method: Method | None = None) -> slt_compress.Ticket:
    return slt_compress.search(
        module, batches(), loss_fn=loss_fn, budget=Budget(density=0.5), method=method or Relaxed(),
        training=Training(steps=2, selections=1), out=out,
    )  # fmt: skip


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    before = whole(module)
    try:
        yield
    finally:
        assert differences(before, whole(module)) == []


def check_every_verb(module: nn.Module, folder: Path, method: Method) -> None:
    ticket = folder / "ticket"
    with untouched(module):
        slt_compress.plan(module, budget=Budget(density=0.5))
    with untouched(module):
        searched(module, ticket, method)
    with untouched(module):
        found = slt_compress.load(ticket, model=module)
        found(batches()[0])
        found.train()(batches()[0])
    with untouched(module):
        proof = slt_compress.verify(ticket, model=module)
    assert proof.ok, proof
    for format in FORMATS:
        with untouched(module):
            slt_compress.export(ticket, format=format, model=module, out=folder / format)
        with untouched(module):
            assert slt_compress.verify(folder / format, model=module).ok
            slt_compress.load(folder / format, model=module)(batches()[0])
    with untouched(module):
        base = slt_compress.Base(module)
        try:
            base.apply(ticket)
        except slt_compress.SltError as error:
            assert "parametrization" in str(error)  # noqa: PT017 - some parts are refused
        base.remove()


numbers = itertools.count()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.mark.parametrize("name", PARTS)
def test_every_verb_leaves_a_module_as_it_was(name: str, root: Path) -> None:
    for seed in (0, 5):
        check_every_verb(made([name], seed), root / str(next(numbers)), METHODS[seed % 2]())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=5),
    seed=st.integers(0, 2**12),
    method=st.sampled_from(METHODS),
)
def test_every_verb_leaves_modules_of_any_parts_as_they_were(
    names: list[str], seed: int, method: Callable[[], Method], root: Path
) -> None:
    check_every_verb(made(names, seed), root / str(next(numbers)), method())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4),
    seed=st.integers(0, 2**12),
    calls=st.integers(1, 40),
)
def test_an_exception_at_any_call_leaves_modules_as_they_were(
    names: list[str], seed: int, calls: int, root: Path
) -> None:
    module, left = made(names, seed), itertools.count(1)

    def failing(module: nn.Module, batch: Tensor) -> Tensor:
        if next(left) == calls:
            next(module.children())(batch)  # half of a forward pass
            raise StopError
        return loss_fn(module, batch)

    with untouched(module), suppress(StopError):
        slt_compress.search(
            module, batches(), loss_fn=failing, budget=Budget(density=0.5),
            training=Training(steps=3, selections=1), out=root / str(next(numbers)),
        )  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_the_forward_pass_of_a_searched_module_is_the_one_before(name: str, root: Path) -> None:
    """A table that is zeroed behind the back of its length gives other outputs, and no error."""
    module, twin = made([name], 0).eval(), made([name], 0).eval()
    searched(module, root / str(next(numbers)))
    for batch in batches():
        assert torch.equal(module(batch), twin(batch))


def test_what_is_put_back_is_put_back_although_a_step_fails() -> None:
    module = made(["changed", "changed"], 0)
    broken = module[0].table
    before = remember(module)
    module.eval()
    module[0].table.add_(1)
    module[1].table = torch.ones(9)
    (values,) = [v for v in before.values if v.tensor is broken]
    values.copy.resize_(0)  # nothing can be put back from this
    with pytest.raises(RuntimeError):
        before.put_back()
    assert torch.equal(module[1].table, torch.zeros(2))
    twin = made(["changed", "changed"], 0)
    assert [p.requires_grad for p in module.parameters()] == [
        p.requires_grad for p in twin.parameters()
    ]
    assert [child.training for child in module] == [child.training for child in twin]


def test_copies_share_no_class_and_no_tensor() -> None:
    module = nn.Sequential(made([*PARTS], 3), *(make() for make in OLD.values()))
    before, copied = whole(module), copy_of(module)
    theirs = {id(t) for t in (*module.parameters(), *module.buffers())}
    assert not theirs & {id(t) for t in (*copied.parameters(), *copied.buffers())}
    made_by_torch = {type(c) for c in module.modules() if "parametrizations" in c._modules}
    assert made_by_torch
    assert not made_by_torch & {type(child) for child in copied.modules()}
    for child in copied.modules():
        for key in list(getattr(child, "parametrizations", {})):
            torch.nn.utils.parametrize.remove_parametrizations(child, key)
    assert differences(before, whole(module)) == []


def test_a_mode_of_the_caller_does_not_matter(root: Path) -> None:
    module: Any = made(["weight norm", "registered longer"], 1)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode, untouched(module):
            ticket = searched(module, root / str(next(numbers)))
        assert slt_compress.verify(ticket.path, model=module).ok
        with mode, untouched(module):
            assert slt_compress.verify(ticket.path, model=module).ok


def test_a_parameter_keeps_its_gradient() -> None:
    module = made(["linear"], 0)
    module[0].weight.requires_grad_(True)
    module(batches()[0]).sum().backward()
    grad = module[0].weight.grad
    with unchanged(module):
        module[0].weight.grad = None
    assert module[0].weight.grad is grad
