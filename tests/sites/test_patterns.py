"""Patterns: their names, the sites that can hold them, and exact counts in every one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import conv_net, gpt2, lstm, mixtral, mlp
from torch import Tensor, nn

from slt_compress.errors import BudgetError, TargetError
from slt_compress.sites.budget import Budget, binarize, hard_thresholds
from slt_compress.sites.fitting import lay_out, output_units, plan_sites
from slt_compress.sites.layouts import Blocks, Grouped, kept_units
from slt_compress.sites.patterns import parse_pattern
from slt_compress.sites.sites import Site, find_sites

exactly = settings(deadline=None, derandomize=True, max_examples=60)
PATTERNS = [
    "unstructured",
    "2:4",
    "1:4",
    "block:2x3",
    "block:4x4",
    "block:1x8",
    "neuron",
    "channel",
]


@pytest.mark.parametrize(
    ("text", "kind", "first", "second", "density"),
    [
        ("unstructured", "unstructured", 1, 1, None),
        ("2:4", "n:m", 2, 4, 0.5),
        ("1:16", "n:m", 1, 16, 0.0625),
        ("block:4x16", "block", 4, 16, None),
        ("neuron", "neuron", 1, 1, None),
    ],
)
def test_a_pattern_is_its_text(
    text: str, kind: str, first: int, second: int, density: float | None
) -> None:
    found = parse_pattern(text)
    assert (found.text, found.kind, found.first, found.second) == (text, kind, first, second)
    assert found.density == density
    assert found.counts_units == (kind in ("block", "neuron"))


@pytest.mark.parametrize(
    "text", ["", "2:4 ", "0:4", "2:0", "02:4", "block", "block:0x4", "block:4", "rows", "2:4:8"]
)
def test_an_unknown_pattern_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match=r"unknown pattern .*; known: unstructured, N:M"):
        parse_pattern(text)


def test_a_density_that_the_pattern_does_not_have_is_refused() -> None:
    assert Budget(density=1 / 3, pattern="1:3").density == 1 / 3
    assert Budget(density=0.3333, pattern="1:3").density == 0.3333
    with pytest.raises(BudgetError, match=r"2:4 keeps 2 of 4 weights, a sparsity of 0\.5: a targ"):
        Budget(density=0.4, pattern="2:4")


def test_groups_run_along_the_inputs_and_a_site_that_m_does_not_divide_is_skipped() -> None:
    plan = lay_out(find_sites(conv_net().module), parse_pattern("2:4"), conv_net().module)
    assert {site.name: site.layout for site in plan.sites} == {
        "up.weight": Grouped(kept=2, size=4, dim=0),
        "head.weight": Grouped(kept=2, size=4, dim=1),
    }
    assert plan.skipped["first.weight"] == "2:4: 4 does not divide its input dimension of 3"
    assert plan.skipped["depthwise.weight"] == "2:4: 4 does not divide its input dimension of 1"
    conv1d = lay_out(find_sites(gpt2().module), parse_pattern("4:8"), gpt2().module)
    assert {site.layout.dim for site in conv1d.sites} == {0}  # type: ignore[attr-defined]
    experts = lay_out(find_sites(mixtral().module), parse_pattern("2:4"), mixtral().module)
    dims = {site.name: site.layout.dim for site in experts.sites}  # type: ignore[attr-defined]
    assert dims["model.layers.0.mlp.experts.down_proj"] == 2


def test_a_pattern_that_no_site_can_hold_is_refused_with_the_reasons() -> None:
    with pytest.raises(TargetError, match=r"the pattern 3:7 \(0.weight: 3:7: 7 does not divide"):
        lay_out(find_sites(mlp().module), parse_pattern("3:7"), mlp().module)


def test_neurons_are_rows_and_output_layers_have_none() -> None:
    plan = lay_out(find_sites(mlp().module), parse_pattern("neuron"), mlp().module)
    (site,) = plan.sites
    assert site.layout == Blocks(weight=(16, 6), matrix=(16, 6), block=(1, 6))
    assert site.units == 16
    assert plan.skipped["3.weight"] == "output layer: its rows are the model's outputs"
    found = lay_out(find_sites(gpt2().module), parse_pattern("neuron"), gpt2().module)
    layouts = {site.name: site.layout for site in found.sites}
    assert layouts["transformer.h.0.mlp.c_fc.weight"] == Blocks(
        weight=(8, 32), matrix=(8, 32), block=(8, 1)
    )
    module = nn.Sequential(lstm().module, nn.Linear(12, 2), nn.Linear(2, 2))
    found = lay_out(find_sites(module), parse_pattern("neuron"), module)
    assert "one gate of a cell" in found.skipped["0.weight_hh_l0"]
    assert [site.name for site in found.sites] == ["1.weight"]


def test_channels_are_outputs_of_convolutions() -> None:
    plan = lay_out(find_sites(conv_net().module), parse_pattern("channel"), conv_net().module)
    assert {site.name: site.units for site in plan.sites} == {
        "first.weight": 8, "depthwise.weight": 8, "up.weight": 4,
    }  # fmt: skip
    up = next(site for site in plan.sites if site.name == "up.weight")
    mask = up.layout.expand(torch.tensor([[True, False, False, True]]).expand(1, 4))
    assert mask.shape == (8, 4, 2, 2)
    assert mask[:, [0, 3]].all()
    assert not mask[:, [1, 2]].any()
    assert plan.skipped["head.weight"] == "channel: it is not a convolution"
    only = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3))
    found = lay_out(find_sites(only), parse_pattern("channel"), only)
    assert [site.name for site in found.sites] == ["0.weight"]


def test_neurons_of_experts_are_rows_of_each_expert() -> None:
    module = mixtral().module
    plan = lay_out(find_sites(module), parse_pattern("neuron"), module)
    site = next(site for site in plan.sites if site.kind == "experts")
    assert site.units == site.shape[0] * site.shape[1]
    for shape, inputs in (((3, 4, 6), 2), ((3, 6, 4), 1)):
        own = Site(module="", param="w", shape=shape, kind="experts", input_dim=inputs)
        layout = output_units(own)
        kept = torch.zeros(layout.grid(shape), dtype=torch.bool)
        kept.view(-1)[5] = True  # the second output of the second expert
        mask = layout.expand(kept)
        assert int(mask.sum()) == 6
        assert mask.select(inputs % 2 + 1, 1)[1].all()


@st.composite
def fitted(draw: st.DrawFn) -> tuple[nn.Module, str, float]:
    widths = draw(st.lists(st.sampled_from([1, 4, 8, 12]), min_size=3, max_size=5))
    layers: list[nn.Module] = [nn.Conv2d(4, 8, 3), nn.Conv2d(8, widths[0], 1), nn.Flatten()]
    layers += [nn.Linear(a, b) for a, b in zip(widths, [*widths[1:], 8], strict=True)]
    return nn.Sequential(*layers), draw(st.sampled_from(PATTERNS)), draw(st.floats(0.01, 0.99))


@exactly
@given(
    fitted(), st.sampled_from(["global", "type", "layer"]), st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from(["none", "rms"]), st.integers(0, 999), st.booleans(),
)  # fmt: skip
def test_the_count_is_exact_in_every_pattern_and_scope(
    case: tuple[nn.Module, str, float],
    scope: str,
    floor: float,
    normalise: str,
    seed: int,
    equal: bool,
) -> None:
    module, text, density = case
    density = parse_pattern(text).density or density
    budget = Budget(
        density=density, pattern=text, scope=scope, floor=floor, normalise=normalise
    )  # fmt: skip
    plan = plan_sites(module, None, budget)
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape) if equal else torch.randn(shape, generator=generator)

    scores = {site.name: draw(site.layout.grid(site.shape)) for site in plan.sites}
    masks = binarize(scores, budget, plan.layouts)
    units = {n: kept_units(layout, masks[n]) for n, layout in plan.layouts.items()}
    total = sum(site.units for site in plan.sites)
    assert sum(int(kept.sum()) for kept in units.values()) == max(1, round(density * total))
    for site in plan.sites:
        assert masks[site.name].shape == site.shape
        assert site.layout.holds(masks[site.name], torch.zeros_like(masks[site.name]))
    if not equal:  # the hard phase of a search keeps the same units as its end
        centred = {name: plan.layouts[name].centre(score) for name, score in scores.items()}
        thresholds = hard_thresholds(centred, budget, density)
        for name, score in centred.items():
            assert torch.equal(score > thresholds[name], units[name])


@pytest.mark.parametrize("text", ["2:4", "1:4", "3:8"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_above_its_density_an_n_of_m_ranking_keeps_the_best_of_each_group_first(
    text: str, scope: str
) -> None:
    pattern = parse_pattern(text)
    layout = Grouped(kept=pattern.first, size=pattern.second, dim=1)
    scores = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0))}
    centred = {"w": layout.centre(scores["w"])}
    assert pattern.density is not None
    budget = Budget(density=pattern.density, pattern=text, scope=scope)  # type: ignore[arg-type]
    density = (1 + pattern.density) / 2
    kept = centred["w"] > hard_thresholds(centred, budget, density)["w"]
    assert int(kept.sum()) == round(density * 64 * 64)
    final = binarize(scores, budget, {"w": layout})["w"]
    assert not bool((final & ~kept).any())
