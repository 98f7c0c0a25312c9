"""Base: masks go on a loaded model, are exchanged, and come off without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from pipelines import RECIPE
from torch import nn
from torch.nn.utils import parametrizations

import slt_compress
from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import SltError
from slt_compress.searching.recipes import parse_recipe


@pytest.fixture(scope="module")
def tickets(checkpoints, data_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tickets")
    other = parse_recipe({**RECIPE.to_dict(), "target_sparsity": 0.5, "method": "random"})
    return [
        slt_compress.search(
            checkpoints["resnet"], data_sets["pictures"], recipe=recipe, out=folder / name
        )
        for name, recipe in (("one", RECIPE), ("two", other))
    ]


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_apply_swap_remove(tickets, checkpoints, tmp_path):
    module = open_checkpoint(checkpoints["resnet"]).module
    before, wanted = state(module), [state(slt_compress.load(t.path)) for t in tickets]
    assert all(not equal(before, other) for other in wanted)
    base = slt_compress.Base(module)
    assert base.module is module
    assert not isinstance(base, nn.Module)
    assert base.applied is None
    assert equal(state(base.apply(tickets[0]).module), wanted[0])
    assert base.applied == tickets[0].path
    with pytest.raises(SltError, match="on already"):
        base.apply(tickets[1].path)
    assert equal(state(base.swap(str(tickets[1].path)).module), wanted[1])
    assert equal(state(base.remove().module), before)
    assert equal(state(base.remove().module), before)
    mask = slt_compress.export(tickets[0].path, format="mask", out=tmp_path / "x").path
    assert equal(state(base.swap(mask).module), wanted[0])
    dense = slt_compress.export(tickets[0].path, out=tmp_path / "y").path
    with pytest.raises(SltError, match="holds weights"):
        base.swap(dense)
    assert equal(state(base.module), wanted[0])
    assert equal(state(base.remove().module), before)


def test_other_weights_are_refused_and_left_alone(tickets, checkpoints):
    module = open_checkpoint(checkpoints["resnet"]).module
    other = copy.deepcopy(module)
    with torch.no_grad():
        next(p for p in other.parameters() if p.dim() > 1).add_(1)
    before = state(other)
    with pytest.raises(SltError, match="not a ticket of the weights"):
        slt_compress.Base(other).apply(tickets[0])
    assert equal(state(other), before)
    with pytest.raises(SltError):
        slt_compress.Base(nn.Linear(2, 2)).apply(tickets[0])


def test_a_computed_weight_is_refused(tmp_path):
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    ticket = slt_compress.search(
        module, [torch.ones(2, 4)], recipe=RECIPE, out=tmp_path / "t",
        loss_fn=lambda model, batch: model(batch).square().mean(),
    )  # fmt: skip
    before = state(module)
    with pytest.raises(SltError, match="parametrization"):
        slt_compress.Base(module).apply(ticket)
    assert equal(state(module), before)
