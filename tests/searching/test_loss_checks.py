"""A loss of the user's own that is none, or that changes what is frozen: one sentence each."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import slt_compress
from slt_compress import Budget, Training
from slt_compress.errors import SltError

SHORT = Training(steps=3, batch_size=4, selections=1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


def data():
    return [torch.randn(4, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def searched(loss_fn, out, module=None):
    steps = []
    try:
        slt_compress.search(
            module or net(), data(), loss_fn=loss_fn, budget=Budget(density=0.5), training=SHORT,
            out=out, on_step=steps.append,
        )  # fmt: skip
    finally:
        searched.steps = len(steps)


NO_LOSS = {
    "vector": lambda module, batch: module(batch).square().mean(1),
    "float": lambda module, batch: 0.5,
    "item": lambda module, batch: module(batch).square().mean().item(),
    "none": lambda module, batch: None,
    "detached": lambda module, batch: module(batch).square().mean().detach(),
    "constant": lambda module, batch: torch.tensor(1.0),
    "int": lambda module, batch: module(batch).argmax(),
    "complex": lambda module, batch: module(batch).mean().to(torch.complex64),
    "empty": lambda module, batch: module(batch)[:0],
    "bool": lambda module, batch: module(batch).mean() > 0,
    "tuple": lambda module, batch: (module(batch).mean(),),
}


@pytest.mark.parametrize("kind", sorted(NO_LOSS))
def test_what_is_no_loss_is_a_sentence_before_the_first_step(kind, tmp_path):
    module = net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(SltError, match=r"^loss_fn returned") as caught:
        searched(NO_LOSS[kind], tmp_path / "t", module)
    assert "\n" not in str(caught.value)
    assert searched.steps == 0
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def in_place(module, batch):
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.requires_grad or parameter.shape == (2,):
                parameter.add_(1e-3)
    return module(batch).square().mean()


def by_data(module, batch):
    module[2].bias.data.mul_(1.5)
    return module(batch).square().mean()


def late(module, batch):
    if late.calls > 4:
        module[2].bias.data.mul_(1.5)
    late.calls += 1
    return module(batch).square().mean()


def replacing(module, batch):
    module[2] = nn.Linear(8, 2)
    return module(batch).square().mean()


@pytest.mark.parametrize("loss_fn", [in_place, by_data, late, replacing])
def test_a_loss_that_changes_weights_is_noticed(loss_fn, tmp_path):
    late.calls = 0
    with pytest.raises(SltError, match="loss_fn changes the weights"):
        searched(loss_fn, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_what_cannot_be_called_is_a_sentence(tmp_path):
    with pytest.raises(SltError, match=r"^loss_fn is a str and no function"):
        searched("mse", tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_of_any_shape_is_a_loss(shape, tmp_path):
    searched(lambda module, batch: module(batch).square().mean().reshape(shape), tmp_path / "t")
    assert (tmp_path / "t" / "ticket.json").is_file()
    assert searched.steps == 3
