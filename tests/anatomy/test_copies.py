"""Copies share nothing with the module that they were made from, its class included."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import slt_compress
from slt_compress.anatomy.copies import copy_of
from slt_compress.searching.recipes import parse_recipe


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(20, 8)), nn.Linear(8, 3))


def test_a_parametrization_that_is_removed_from_a_copy_stays_on_the_original() -> None:
    module = normed()
    weight, copy = module[0].weight.clone(), copy_of(module)
    assert type(copy[0]) is not type(module[0])
    assert isinstance(copy[0], nn.Linear)
    parametrize.remove_parametrizations(copy[0], "weight")
    with torch.no_grad():
        copy[0].weight.zero_()
    assert torch.equal(module[0].weight, weight)
    assert parametrize.is_parametrized(module[0], "weight")


def test_a_module_of_ones_own_keeps_its_weight_norm(tmp_path) -> None:
    module = normed()
    recipe = parse_recipe({"target_sparsity": 0.5, "method": "magnitude"})
    ticket = slt_compress.search(
        module, [torch.ones(2, 20)], recipe=recipe, out=tmp_path / "t",
        loss_fn=lambda model, batch: model(batch).square().mean(),
    )  # fmt: skip
    before = module[0].weight.clone()
    for _ in range(2):
        loaded = slt_compress.load(ticket.path, model=module)
        assert not parametrize.is_parametrized(loaded[0])
        assert slt_compress.verify(ticket.path, model=module, in_process=True).ok
    out = slt_compress.export(ticket.path, format="bitmask", out=tmp_path / "x", model=module).path
    assert slt_compress.verify(out, model=module, in_process=True).ok
    assert torch.equal(module[0].weight, before)
