"""Searches inside a ticket: nothing that it removed comes back, in no phase and in no control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import slt_compress
from slt_compress import Budget, Masks, Recipe, Ticket
from slt_compress.errors import BudgetError, SltError, TicketError
from slt_compress.evidence.controls import control_masks
from slt_compress.gates import METHODS, Learned, Phase, Sample
from slt_compress.searching.recipes import parse_recipe
from slt_compress.sites.budget import binarize, soft_shifts
from slt_compress.sites.fitting import largest_density
from slt_compress.sites.layouts import ELEMENTWISE, Inside
from slt_compress.sites.sites import Site, SitePlan

LEARNED = [name for name, method in METHODS.items() if isinstance(method(), Learned)]
exactly = settings(deadline=None, derandomize=True, max_examples=60)


def drawn(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def plan_of(allowed: dict[str, Tensor | None], shape: tuple[int, int] = (12, 10)) -> SitePlan:
    return SitePlan(
        sites=tuple(
            Site(
                module=name, param="weight", shape=shape, kind="linear",
                layout=ELEMENTWISE if mask is None else Inside(allowed=mask),
            )
            for name, mask in allowed.items()
        ),
        skipped={},
    )  # fmt: skip


@exactly
@given(
    st.floats(0.2, 0.9), st.floats(0.05, 0.95), st.sampled_from(["global", "layer"]),
    st.sampled_from([0.0, 0.1]), st.integers(0, 999),
)  # fmt: skip
def test_the_count_is_exact_and_inside_up_to_the_ceiling(
    share: float, part: float, scope: Any, floor: float, seed: int
) -> None:
    plan = plan_of(
        {"a": drawn((12, 10), share, seed), "b": None, "c": drawn((12, 10), share / 2, seed + 1)}
    )
    widest = largest_density(plan, Budget(density=0.5, scope=scope, floor=floor))
    budget = Budget(density=max(0.01, part * widest), scope=scope, floor=floor)
    generator = torch.Generator().manual_seed(seed)
    scores = {site.name: torch.randn(site.shape, generator=generator) for site in plan.sites}
    masks = binarize(scores, budget, plan.layouts)
    assert masks.kept == max(1, round(budget.density * masks.total))
    controls = dict(control_masks(masks, scores, seed, plan.layouts))
    for mask in (masks, *controls.values()):
        for site in plan.sites:
            assert int(mask[site.name].sum()) == int(masks[site.name].sum())
            assert site.layout.holds(mask[site.name], torch.zeros(site.shape, dtype=torch.bool))
    for site in plan.sites:  # row counts are what `shuffled` keeps
        shuffled = controls["shuffled"][site.name]
        assert torch.equal(shuffled.sum(1), masks[site.name].sum(1))


def test_a_mask_outside_does_not_hold() -> None:
    allowed = drawn((12, 10), 0.5, 0)
    nothing = torch.zeros_like(allowed)
    assert Inside(allowed=allowed).holds(allowed, nothing)
    assert not Inside(allowed=allowed).holds(~allowed, nothing)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("hard", [False, True])
def test_gates_are_shut_outside_and_meet_the_density_inside(name: str, hard: bool) -> None:
    method: Any = METHODS[name]()
    allowed = drawn((40, 30), 0.3, 1)
    layout, weight = Inside(allowed=allowed), torch.ones(40, 30)
    scores = layout.centre(method.start(weight, None, key=3))
    phase, budget = Phase(step=0, seed=0, hard=hard), Budget(density=0.2)
    shift = method.shifts({"w": scores}, budget, 0.2, phase, {"w": 0.0})["w"]
    sample = Sample(phase=phase, shift=shift, key=5, rescale=False, layout=layout)
    gates = method.effective(scores, weight, sample)
    assert not bool(gates[~allowed].any())
    rounded = int((gates > 0.5).sum())
    assert abs(rounded - 0.2 * 1200) <= (0 if hard else 45)  # 3 standard deviations


def test_the_soft_budget_is_met_though_most_weights_are_shut() -> None:
    method = METHODS["relaxed"]()
    layout = Inside(allowed=drawn((100, 100), 0.2, 2))
    scores = layout.centre(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))
    law = method.law(Phase(step=0, seed=0))  # type: ignore[union-attr]
    at = soft_shifts({"w": scores}, Budget(density=0.1), 0.1, law.keep_probability_, {"w": 0.0})
    assert float(law.keep_probability_(scores - at["w"]).mean()) == pytest.approx(0.1, rel=0.01)


def short(**changes: Any) -> Recipe:
    base = {"init": "random", "dataset": "digits", "evaluation": {"limit": 64}}
    return parse_recipe({**base, "training": {"steps": 6, "selections": 1}, **changes})


@pytest.fixture(scope="module")
def outer(tmp_path_factory: pytest.TempPathFactory) -> Ticket:
    return slt_compress.search(
        "lenet-300-100", recipe=short(pattern="neuron", target_sparsity=0.77, method="random"),
        out=tmp_path_factory.mktemp("outer") / "ticket",
    )  # fmt: skip


def silent_rows(masks: Masks) -> dict[str, int]:
    return {name: int((~mask.any(1)).sum()) for name, mask in masks.items()}


def test_a_search_inside_keeps_no_weight_of_a_removed_neuron(outer: Ticket, tmp_path: Path) -> None:
    recipe = short(inside=str(outer.path), target_sparsity=0.9)
    found = slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "ticket")
    assert found.masks.kept == round(0.1 * found.masks.total)
    gone = {name: ~mask.any(1) for name, mask in outer.masks.items()}
    assert set(gone) == {"fc1.weight", "fc2.weight"}  # the outputs are no neurons to remove
    assert sum(int(rows.sum()) for rows in gone.values()) == 308  # 77 % of 400
    for name, mask in found.masks.items():
        if name in gone:
            assert not bool(mask[gone[name]].any())
    assert not bool(found.masks["fc2.weight"][:, gone["fc1.weight"]].any())
    assert not bool(found.masks["fc3.weight"][:, gone["fc2.weight"]].any())
    assert silent_rows(found.masks)["fc1.weight"] >= int(gone["fc1.weight"].sum())
    assert found.recipe["inside"] == str(outer.path)
    verified = slt_compress.verify(found.path, in_process=True)
    assert verified.ok, verified
    shrunk = slt_compress.export(found.path, format="dense", shrink=True, out=tmp_path / "small")
    assert sum(p.numel() for p in slt_compress.load(shrunk.path).parameters()) < 60_000


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target_sparsity": 0.5}, BudgetError, "the sparsity must be at least"),
        (
            {"scope": "layer", "target_sparsity": 0.9},
            BudgetError,
            "leaves too few weights in a layer",
        ),
        (
            {"pattern": "2:4", "target_sparsity": 0.5},
            BudgetError,
            "needs the pattern 'unstructured'",
        ),
        ({"densities": {"fc1*": 0.1}}, BudgetError, "no densities"),
        ({"targets": {"exclude": ["fc1*"]}}, TicketError, "gates fc1.weight, which this search"),
        ({"training": {"steps": 2, "seed": 1}}, TicketError, "belongs to other weights"),
        ({"inside": "nowhere"}, SltError, "nowhere"),
    ],
)
def test_what_does_not_fit_inside_is_refused(
    changes: dict[str, Any], error: type[SltError], message: str, outer: Ticket, tmp_path: Path
) -> None:
    recipe = short(**{"inside": str(outer.path), **changes})
    with pytest.raises(error, match=message):
        slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "ticket")
    assert not (tmp_path / "ticket").exists()


def test_a_plan_inside_needs_no_weights(outer: Ticket) -> None:
    recipe = short(inside=str(outer.path), target_sparsity=0.9)
    found = slt_compress.plan("lenet-300-100", recipe=recipe)
    assert found.sparsity["target"] == 0.9
    assert "inside" in found.command
