"""Every pattern from search to proof: masks, records, exports, and a mask that breaks it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import slt_compress
from slt_compress import Masks
from slt_compress.errors import BudgetError
from slt_compress.evidence.pattern_checks import pattern_held
from slt_compress.runtime.opening import open_path, origin_of
from slt_compress.searching.recipes import Recipe, parse_recipe
from slt_compress.tickets import Ticket, read_scores
from slt_compress.tickets.provenance import Provenance, provenance_of
from slt_compress.tickets.records import Units

TRAINING = {"steps": 4, "batch_size": 4, "selections": 2}


def short(**changes: Any) -> Recipe:
    return parse_recipe({"training": TRAINING, "save_scores": True, **changes})


def proofs(path: Path) -> dict[str, str]:
    """Name -> detail of the checks, all of which have to be good."""
    found = slt_compress.verify(path, in_process=True)
    assert found.ok, found
    return {check.name: check.detail for check in found.checks}


@pytest.mark.parametrize(
    ("name", "data", "pattern", "gated"),
    [
        ("vit", "pictures", "head", 4),
        ("vit", "pictures", "neuron", None),
        ("resnet", "pictures", "channel", None),
        ("gpt2", "prose", "block:4x3", None),
        ("mixtral", "prose", "neuron", None),
    ],
)
def test_units_are_counted_from_search_to_proof(
    name: str, data: str, pattern: str, gated: int | None, checkpoints, data_sets, tmp_path: Path
) -> None:
    recipe = short(pattern=pattern, target_sparsity=0.5)
    ticket = slt_compress.search(
        checkpoints[name], data_sets[data], recipe=recipe, out=tmp_path / "ticket"
    )
    report = slt_compress.report(ticket.path)
    units = report.sparsity["units"]
    assert units["kept"] == round(0.5 * units["gated"])
    assert gated in (None, units["gated"])
    assert units["kept"] == sum(layer["units"]["kept"] for layer in report.layers)
    assert {n: s.numel() for n, s in read_scores(ticket.path).items()} == {
        layer["name"]: layer["units"]["gated"] for layer in report.layers
    }
    assert f"{units['kept']:,} of {units['gated']:,} units" in proofs(ticket.path)["pattern"]
    assert f"in the pattern `{pattern}`" in (ticket.path / "README.md").read_text()
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert set(report.controls) == {"random", "shuffled", "magnitude"}
    for format in ("dense", "sparse-csr"):
        out = slt_compress.export(ticket.path, format=format, out=tmp_path / format).path
        assert f"{units['kept']:,} of {units['gated']:,} units" in proofs(out)["pattern"]
        exported = slt_compress.report(out)
        assert replace(exported, warnings=report.warnings) == report
        assert set(exported.warnings) >= set(report.warnings)
        assert (
            f"The pattern `{pattern}` keeps {units['kept']:,} of" in (out / "README.md").read_text()
        )
    if pattern == "head":
        assert sum(report.sparsity["silenced"].values()) == 2 * 3 * 8 * 16


@pytest.mark.parametrize(
    "method",
    ["relaxed", {"name": "relaxed", "signed": True}, "gumbel", "edge-popup", "magnitude", "wanda"],
    ids=str,
)
def test_two_of_four(method: Any, checkpoints, data_sets, tmp_path: Path) -> None:
    ticket = slt_compress.search(
        checkpoints["llama"], data_sets["prose"],
        recipe=short(pattern="2:4", method=method), out=tmp_path / "ticket",
    )  # fmt: skip
    for mask in ticket.masks.values():
        assert (mask.reshape(len(mask), -1, 4).sum(-1) == 2).all()
    assert ticket.recipe["target_sparsity"] == 0.5
    assert ticket.counts.kept * 2 == ticket.counts.gated
    if method == "magnitude":
        weight = slt_compress.load(ticket.path).get_parameter("model.layers.0.mlp.up_proj.weight")
        origin = slt_compress.open_checkpoint(checkpoints["llama"]).module
        dense = origin.get_parameter("model.layers.0.mlp.up_proj.weight").detach().abs()
        best = dense.reshape(len(dense), -1, 4).topk(2, dim=-1).values.sum()
        assert float(weight.detach().abs().sum()) == pytest.approx(float(best))
    assert "masks are 2:4" in proofs(ticket.path)["pattern"]
    out = slt_compress.export(ticket.path, out=tmp_path / "dense").path
    assert "masks are 2:4" in proofs(out)["pattern"]


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Ticket:
    recipe = short(
        init="random", pattern="channel", target_sparsity=0.5, method="magnitude", dataset="digits"
    )
    folder = tmp_path_factory.mktemp("channels") / "ticket"
    return slt_compress.search("conv2", recipe=recipe, out=folder)


def held(
    ticket: Ticket, masks: Masks, zeros: Masks | None = None, **changes: Any
) -> tuple[bool, str]:
    """The check of `masks`; with `zeros`, as of a dense export of an origin that is 0 there."""
    module = origin_of(open_path(ticket.path)).module
    known: Provenance = replace(provenance_of(ticket), **changes)
    weights = {name: torch.ones(mask.shape) for name, mask in masks.items()}
    for name, zero in (zeros or {}).items():
        weights[name][zero] = 0.0
    return pattern_held(known, module, masks, weights, stored=zeros is None)


def test_a_mask_that_breaks_the_pattern_is_found_out(channels: Ticket) -> None:
    masks, name = channels.masks, "features.0.weight"
    assert held(channels, masks)[0]
    broken = masks[name].clone()
    on, off = broken.nonzero()[0], (~broken).nonzero()[0]
    broken[tuple(on)], broken[tuple(off)] = False, True
    ok, detail = held(channels, Masks({**masks, name: broken}))
    assert not ok
    assert detail == "1 of 2 masks break channel, first features.0.weight"
    fewer = masks[name].clone()
    fewer[int(on[0])] = False
    ok, detail = held(channels, Masks({**masks, name: fewer}))
    assert not ok
    assert "63 of 128 units" in detail
    blank = Masks(
        {
            n: m & ~f
            for (n, m), f in zip(masks.items(), (fewer, masks["features.2.weight"]), strict=True)
        }
    )
    assert held(channels, Masks({**masks, name: fewer}), blank)[0]


def test_what_a_manifest_says_of_its_pattern_is_not_believed(channels: Ticket) -> None:
    counts = provenance_of(channels).counts
    lie = replace(counts, units=Units(kept=10, gated=20))
    assert not held(channels, channels.masks, counts=lie)[0]
    for pattern, reason in (
        ("2:4", "cannot hold"),
        ("rows", "unknown pattern"),
        ("head", "no site"),
    ):
        budget = {**channels.budget, "pattern": pattern}
        ok, detail = held(channels, channels.masks, budget=budget)
        assert not ok
        assert reason in detail


def test_one_shot_ranks_units_by_their_norm(channels: Ticket) -> None:
    origin = slt_compress.open_checkpoint("conv2", init="random").module
    scores = read_scores(channels.path)
    norm = origin.get_parameter("features.2.weight").flatten(1).norm(dim=1)
    assert torch.allclose(scores["features.2.weight"].float().view(-1), norm)
    layouts = {name: mask.flatten(1).any(1) for name, mask in channels.masks.items()}
    assert sum(int(kept.sum()) for kept in layouts.values()) == 64


def test_wanda_ranks_units_by_the_norm_of_their_products(
    checkpoints, data_sets, tmp_path: Path
) -> None:
    found = {}
    for method in ("magnitude", "wanda"):
        recipe = short(pattern="head", target_sparsity=0.5, method=method)
        ticket = slt_compress.search(
            checkpoints["llama"], data_sets["prose"], recipe=recipe, out=tmp_path / method
        )
        proofs(ticket.path)
        found[method] = read_scores(ticket.path)
    for name, norm in found["magnitude"].items():
        assert norm.shape == found["wanda"][name].shape == (1, 2)
        assert not torch.allclose(norm, found["wanda"][name], rtol=1e-2)


def test_signed_units_are_flipped_whole(checkpoints, data_sets, tmp_path: Path) -> None:
    method = {"name": "relaxed", "signed": True, "signed_start": 0.0, "prior": "none"}
    recipe = short(pattern="neuron", target_sparsity=0.5, method=method)
    ticket = slt_compress.search(
        checkpoints["vit"], data_sets["pictures"], recipe=recipe, out=tmp_path / "ticket"
    )
    assert "units of the pattern neuron" in proofs(ticket.path)["pattern"]
    for flip in ticket.masks.flips.values():
        assert torch.equal(flip.all(1), flip.any(1))


def test_a_target_that_contradicts_the_pattern_is_refused_before_the_search() -> None:
    with pytest.raises(BudgetError, match="contradicts it"):
        slt_compress.search(
            "lenet-300-100", "digits", recipe=Recipe(pattern="2:4", target_sparsity=0.9)
        )


def test_a_site_that_keeps_no_unit_is_in_the_ticket(tmp_path):
    recipe = parse_recipe({
        "init": "random", "dataset": "digits", "pattern": "neuron", "target_sparsity": 0.9975,
        "training": {"steps": 2, "batch_size": 8}, "evaluation": {"limit": 8, "controls": "none"},
    })  # fmt: skip
    ticket = slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "t")
    kept = sorted(ticket.masks.density_of(name) for name in ticket.masks)
    assert kept[0] == 0 < kept[-1]
    assert slt_compress.verify(ticket.path, in_process=True).ok
