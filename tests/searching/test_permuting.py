"""N:M in an order of the inputs: from the search to the proof, in every format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import conv_net, gpt2, mlp
from test_swapping import batches_of, forward, swapping

import slt_compress
from slt_compress.errors import RecipeError, SltError, TicketError
from slt_compress.gates import Swaps
from slt_compress.gates.exchanges import row_errors
from slt_compress.masks import Masks
from slt_compress.searching.block_passes import gathered
from slt_compress.searching.input_grams import as_matrix, from_matrix, seen_grams
from slt_compress.searching.permuting import permuted_plan
from slt_compress.searching.recipes import Recipe, parse_recipe
from slt_compress.sites.budget import Budget
from slt_compress.sites.layouts import Grouped
from slt_compress.sites.sites import SitePlan
from slt_compress.storage.files import sha256_file, write_json
from slt_compress.tickets import Ticket, read_ticket
from slt_compress.tickets.deriving import merge

TRAINING = {"steps": 4, "batch_size": 4, "selections": 2}


def short(**changes: Any) -> Recipe:
    return parse_recipe({"training": TRAINING, "pattern": "2:4", "permute": True, **changes})


def orders_of(plan: SitePlan) -> dict[str, tuple[int, ...] | None]:
    layouts = plan.layouts.items()
    return {name: layout.order for name, layout in layouts if isinstance(layout, Grouped)}


def in_groups(ticket: Ticket, name: str, dim: int) -> torch.Tensor:
    moved = ticket.masks[name].index_select(dim, torch.tensor(ticket.orders[name])).movedim(dim, -1)
    return moved.reshape(*moved.shape[:-1], -1, 4).sum(-1)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, checkpoints, data_sets) -> Ticket:
    out = tmp_path_factory.mktemp("permuted") / "ticket"
    recipe = short(method={"name": "swaps", "batches": 2})
    return slt_compress.search(checkpoints["llama"], data_sets["prose"], recipe=recipe, out=out)


@pytest.mark.parametrize(
    ("model", "data", "method", "dim"),
    [
        *(("llama", "prose", method, 1) for method in ("relaxed", "magnitude", "edge-popup")),
        ("gpt2", "prose", "wanda", 0),
        ("resnet", "pictures", "wanda", 1),
    ],
)
def test_the_pattern_holds_in_the_stored_order(
    model: str, data: str, method: str, dim: int, checkpoints, data_sets, tmp_path: Path
) -> None:
    ticket = slt_compress.search(
        checkpoints[model], data_sets[data], recipe=short(method=method), out=tmp_path / "ticket"
    )
    assert ticket.version == 4
    assert ticket.orders
    assert all((in_groups(ticket, name, dim) == 2).all() for name in ticket.orders)
    assert slt_compress.verify(ticket.path, in_process=True).ok


def test_the_same_search_twice_has_the_same_bytes(llama, checkpoints, data_sets, tmp_path) -> None:
    again = slt_compress.search(
        checkpoints["llama"], data_sets["prose"],
        recipe=short(method={"name": "swaps", "batches": 2}), out=tmp_path / "again",
    )  # fmt: skip
    assert again.hash == llama.hash


@pytest.mark.parametrize(
    "format", ["dense", "sparse-csr", "bitmask", "nm", "coded", "auto", "mask"]
)
def test_every_format_proves_the_pattern(format: str, llama: Ticket, tmp_path: Path) -> None:
    out = slt_compress.export(llama.path, format=format, out=tmp_path / "out").path
    checks = slt_compress.verify(out, in_process=True)
    assert checks.ok, checks
    (pattern,) = [check.detail for check in checks.checks if check.name == "pattern"]
    assert f"{len(llama.orders)} of them in a stored order of inputs" in pattern
    loaded, masked = slt_compress.load(out), slt_compress.load(llama.path)
    for name, value in masked.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert sum(bool(row.get("permuted")) for row in slt_compress.report(out).layers) == len(
        llama.orders
    )


def test_a_model_that_is_large_enough_is_stored_in_its_order(llama: Ticket, tmp_path: Path) -> None:
    out = slt_compress.export(llama.path, format="nm", out=tmp_path / "out")
    codecs = {entry.format for entry in out.entries.values() if entry.kept is not None}
    assert codecs <= {"permuted-nm", "nm", "bitmask"}
    sizes = slt_compress.report(llama.path).sizes
    stored = sum(file.stat().st_size for file in out.path.glob("*.safetensors"))
    assert sizes["nm"] <= stored


def changed(ticket: Ticket, out: Path, orders: dict[str, Any], version: int = 4) -> Path:
    """A copy of a ticket with other orders of its sites."""
    shutil.copytree(ticket.path, out)
    manifest = json.loads((out / "ticket.json").read_text())
    manifest["version"] = version
    for name, order in orders.items():
        manifest["sites"][name]["order"] = order
    write_json(out / "ticket.json", manifest)
    assert sha256_file(out / "masks.safetensors") == manifest["files"]["masks.safetensors"]
    return out


def test_a_false_order_fails_the_proof(llama: Ticket, tmp_path: Path) -> None:
    name = next(iter(llama.orders))
    order = list(llama.orders[name])
    order[0], order[-1] = order[-1], order[0]
    folder = changed(llama, tmp_path / "other", {name: order})
    checks = {c.name: c for c in slt_compress.verify(folder, in_process=True).checks}
    assert not checks["pattern"].ok
    assert name in checks["pattern"].detail


@pytest.mark.parametrize("order", [[], [0, 0], None, "1", list(range(5)), [0.0] * 16])
def test_what_is_no_order_is_refused(order: Any, llama: Ticket, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "other", {next(iter(llama.orders)): order})
    with pytest.raises(TicketError, match="order of the inputs"):
        read_ticket(folder)


def test_a_version_before_orders_has_none(llama: Ticket, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "other", {}, version=3)
    assert read_ticket(folder).orders == {}
    assert not slt_compress.verify(folder, in_process=True).ok


def test_a_merged_ticket_has_no_order(llama: Ticket, tmp_path: Path) -> None:
    merged = merge(llama.path, llama.path, "and", tmp_path / "merged")
    assert merged.version == 1
    assert merged.orders == {}


def test_an_order_needs_groups() -> None:
    with pytest.raises(RecipeError, match="permute"):
        parse_recipe({"permute": True, "pattern": "unstructured"})


def test_without_the_flag_nothing_is_stored(checkpoints, data_sets, tmp_path: Path) -> None:
    ticket = slt_compress.search(
        checkpoints["llama"], data_sets["prose"], recipe=short(permute=False, method="wanda"),
        out=tmp_path / "ticket",
    )  # fmt: skip
    assert ticket.version == 1
    assert "order" not in (ticket.path / "ticket.json").read_text().replace("reorder", "")


@pytest.mark.parametrize("make", [mlp, conv_net, gpt2])
def test_exchanges_stay_in_the_groups_and_lower_the_error(make: Any) -> None:
    pico, budget = make(), Budget(density=0.5, pattern="2:4")
    work = swapping(pico, Swaps(), budget)
    plan = permuted_plan(pico.module, work.plan, work.weights, work.batches, forward(pico))
    assert any(order is not None for order in orders_of(plan).values())
    work = replace(work, plan=plan)
    with torch.no_grad(), seen_grams(pico.module, plan.sites) as seen:
        for batch in gathered(batches_of(pico), 3):
            forward(pico)(pico.module, batch)
    grams = {name: gram.mean() for name, gram in seen.items()}
    for site in plan.sites:
        gram = grams.get(site.name)
        if gram is None or len(gram) > 1:
            continue
        before, after = (
            replace(work, method=method).site_mask(site, gram)
            for method in (Swaps(diagonal=1.0), Swaps())
        )
        assert site.layout.holds(after, torch.zeros_like(after))
        weight = as_matrix(site, work.weights[site.name])
        assert torch.equal(from_matrix(site, weight), work.weights[site.name])
        errors = [row_errors(weight, as_matrix(site, m), gram[0]).sum() for m in (before, after)]
        assert errors[1] <= errors[0]


def test_the_controls_are_in_the_same_groups(llama: Ticket) -> None:
    from slt_compress.evidence.controls import control_masks

    layouts = {
        name: Grouped(kept=2, size=4, dim=1, order=llama.orders.get(name)) for name in llama.masks
    }
    weights = {name: torch.randn(mask.shape) for name, mask in llama.masks.items()}
    for _, masks in control_masks(Masks(llama.masks), weights, 0, layouts):
        for name, mask in masks.items():
            assert layouts[name].holds(mask, torch.zeros_like(mask))
    with pytest.raises(SltError):
        parse_recipe({"permute": True, "pattern": "neuron"})
