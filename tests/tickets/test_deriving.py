"""Tickets compared and merged: exact counts, nothing claimed that was not measured."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from pipelines import RECIPE

import slt_compress
from slt_compress.cli.app import main
from slt_compress.errors import SltError, TicketError
from slt_compress.tickets.deriving import difference, merge


@pytest.fixture(scope="module")
def tickets(checkpoints, data_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tickets")
    return [
        slt_compress.search(
            checkpoints["vit"], data_sets["pictures"], out=folder / method,
            recipe=dataclasses.replace(RECIPE, method={**RECIPE.method, "name": method}),
        )
        for method in ("magnitude", "random")
    ]  # fmt: skip


def test_difference(tickets, capsys):
    one, two = (ticket.masks for ticket in tickets)
    found = difference(tickets[0].path, tickets[1].path)
    assert found.overlap == one.overlap(two)
    assert found.iou == one.iou(two)
    assert 0 < found.iou < found.overlap < 1
    assert {layer.name for layer in found.layers} == set(one)
    both = sum(layer.both for layer in found.layers)
    assert both == round(found.overlap * one.kept)
    main_ok(["tickets", "diff", str(tickets[0].path), str(tickets[1].path), "--json"])
    assert json.loads(capsys.readouterr().out)["iou"] == found.iou
    main_ok(["tickets", "diff", str(tickets[0].path), str(tickets[0].path)])
    assert "100.00 %" in capsys.readouterr().out


def main_ok(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0


@pytest.mark.parametrize("op", ["and", "or"])
def test_merge(tickets, tmp_path, op, capsys):
    one, two = tickets
    main_ok(["tickets", "merge", "--op", op, str(one.path), str(two.path),
             "-o", str(tmp_path / "t")])  # fmt: skip
    assert capsys.readouterr().out == f"{tmp_path / 't'}\n"
    found = slt_compress.Base(slt_compress.open_checkpoint(one.origin["source"]).module)
    merged = found.apply(tmp_path / "t").module.state_dict()
    for name, mask in one.masks.items():
        other = two.masks[name]
        wanted = mask & other if op == "and" else mask | other
        assert torch.equal(merged[name] != 0, wanted)
    checks = slt_compress.verify(tmp_path / "t", in_process=True)
    assert checks.ok, checks
    report = slt_compress.report(tmp_path / "t")
    assert any(f"merged by `{op}`" in line for line in report.warnings)
    assert not any(report.metrics.values())
    out = slt_compress.export(tmp_path / "t", format="auto", out=tmp_path / "x").path
    assert slt_compress.verify(out, in_process=True).ok
    assert "Nothing was measured" in (out / "README.md").read_text()


def test_merged_random_inits_have_the_gains_of_their_density(tmp_path):
    tickets = []
    for method in ("magnitude", "random"):
        recipe = dataclasses.replace(
            RECIPE, init="random", dataset="digits", method={**RECIPE.method, "name": method}
        )
        tickets.append(
            slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / method).path
        )
    found = merge(*tickets, "or", tmp_path / "t")
    for name, gain in found.gains.items():
        assert gain == found.masks.density_of(name) ** -0.5
    assert slt_compress.verify(found.path, in_process=True).ok


def test_what_does_not_go_together_is_refused(tickets, tmp_path):
    recipe = dataclasses.replace(RECIPE, init="random", dataset="digits")
    other = slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "t").path
    for use in (
        lambda: difference(tickets[0].path, other),
        lambda: merge(tickets[0].path, other, "or", tmp_path / "x"),
        lambda: merge(tickets[0].path, tickets[1].path, "xor", tmp_path / "x"),
        lambda: merge(tickets[0].path, tickets[1].path, "or", other),
        lambda: difference(tmp_path, other),
    ):
        with pytest.raises(TicketError):
            use()
    base = slt_compress.Base(slt_compress.open_checkpoint(tickets[0].origin["source"]).module)
    base.apply(tickets[0])
    with pytest.raises(SltError):
        base.swap(other)
    assert base.applied == tickets[0].path
