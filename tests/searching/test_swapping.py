"""Swaps through whole networks: what a layer misses, block by block, and what comes of a search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Pico, conv_net, gpt2, lstm, mlp, resnet, shared
from torch import Tensor, nn

import slt_compress
from slt_compress.anatomy.states import evaluating
from slt_compress.errors import RecipeError
from slt_compress.gates import EdgePopup, Relaxed, Swaps, Wanda
from slt_compress.gates.exchanges import blend, row_errors
from slt_compress.gates.gating import gated
from slt_compress.masks import Masks
from slt_compress.searching.block_passes import Stage, Stream, stages_of
from slt_compress.searching.first_scores import first_scores
from slt_compress.searching.gradient_energy import gradient_energy
from slt_compress.searching.input_grams import (
    as_matrix,
    from_matrix,
    seen_grams,
    sites_in_front_of_batchnorm,
)
from slt_compress.searching.settings import Training
from slt_compress.searching.swapping import Swapping
from slt_compress.sites.budget import Budget, binarize
from slt_compress.sites.fitting import plan_sites
from slt_compress.sites.sites import find_sites

PICOS = [mlp, conv_net, gpt2, resnet, lstm, shared]


def forward(pico: Pico) -> Callable[[nn.Module, Any], Any]:
    return lambda module, batch: pico.read(module(**batch))


def batches_of(pico: Pico, count: int = 3) -> list[dict[str, Any]]:
    """The inputs of the module, each batch in another order of its examples."""
    return [
        {key: value.roll(shift, 0) for key, value in pico.inputs.items()} for shift in range(count)
    ]


def swapping(pico: Pico, method: Swaps, budget: Budget) -> Swapping:
    plan = plan_sites(pico.module, None, budget)
    weights = {}
    with evaluating(pico.module):
        for site in plan.sites:
            owner = pico.module.get_submodule(site.module)
            weights[site.name] = getattr(owner, site.param).detach()
    return Swapping(
        module=pico.module, plan=plan, method=method, budget=budget, weights=weights,
        batches=batches_of(pico), forward=forward(pico), seed=3,
    )  # fmt: skip


def masks_of(pico: Pico, method: Swaps, budget: Budget, start: Masks | None = None) -> Masks:
    work = swapping(pico, method, budget)
    with gated(pico.module, work.plan) as gates:
        scores, _ = work.scores(gates, start)
    return binarize(scores, budget, work.plan.layouts)


def wanda_masks(pico: Pico, budget: Budget) -> Masks:
    work = swapping(pico, Swaps(), budget)
    scores, _ = first_scores(
        pico.module, work.plan, Wanda(), work.weights, batches_of(pico), forward(pico),
        budget=budget, random_init=False, seed=3,
    )  # fmt: skip
    return binarize(scores, budget, work.plan.layouts)


@pytest.mark.parametrize("make", [mlp, gpt2, lstm, shared])  # with BatchNorm, batches decide
@pytest.mark.parametrize("density", [0.3, 0.5])
def test_lambda_1_on_dense_inputs_is_wanda_exactly(
    make: Callable[[], Pico], density: float
) -> None:
    budget = Budget(density=density)
    swapped = masks_of(make(), Swaps(diagonal=1.0, dense_inputs=1.0), budget)
    wanda = wanda_masks(make(), budget)
    assert all(torch.equal(swapped[name], wanda[name]) for name in wanda)


@pytest.mark.parametrize("make", PICOS)
@pytest.mark.parametrize(
    "method",
    [Swaps(), Swaps(exchange="layer"), Swaps(exchange="layer", error="loss", dense_inputs=0.5),
     Swaps(pool=0, diagonal=0.3), Swaps(dense_inputs=1.0)],
    ids=["row", "layer", "loss", "all", "dense"],
)  # fmt: skip
def test_counts_are_exact_and_the_module_comes_back(
    make: Callable[[], Pico], method: Swaps
) -> None:
    if method.error == "loss" and make is lstm:
        pytest.skip("an LSTM has no one input whose rows could be weighed")
    pico = make()
    before = {name: value.clone() for name, value in pico.module.state_dict().items()}
    budget = Budget(density=0.37)
    masks = masks_of(pico, method, budget)
    assert masks.kept == round(0.37 * masks.total)
    after = pico.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for child in pico.module.modules():
        assert "forward" not in vars(child)
        assert not child._forward_hooks
        assert not child._forward_pre_hooks
        assert not child.training
    again = masks_of(make(), method, budget)
    assert all(torch.equal(masks[name], again[name]) for name in masks)


@pytest.mark.parametrize("make", [mlp, gpt2, resnet])
def test_n_of_m_holds_in_every_group_and_lowers_the_error(make: Callable[[], Pico]) -> None:
    pico, budget = make(), Budget(density=0.5, pattern="2:4")
    work = swapping(pico, Swaps(), budget)
    start, masks = (
        masks_of(make(), Swaps(diagonal=value, dense_inputs=1.0), budget) for value in (1.0, 0.0)
    )
    for site in work.plan.sites:
        groups = masks[site.name].movedim(site.input_dim, -1).unflatten(-1, (-1, 4))
        assert bool((groups.sum(-1) == 2).all())
    if make is not resnet:  # BatchNorm takes the statistics of each batch
        assert output_error(pico, masks) < output_error(pico, start)


def output_error(pico: Pico, masks: Masks) -> float:
    """Sum over the sites of the errors of their outputs on the inputs of the dense network."""
    plan = find_sites(pico.module)
    total = 0.0
    with torch.no_grad(), seen_grams(pico.module, plan.sites) as grams:
        for batch in batches_of(pico):
            forward(pico)(pico.module, batch)
    for site in plan.sites:
        if site.name in grams and site.name in masks:
            mean = grams[site.name].mean()
            assert mean is not None
            weight = as_matrix(site, pico.module.get_parameter(site.name).detach())
            mask = as_matrix(site, masks[site.name])
            for part, kept, gram in zip(
                weight.chunk(len(mean)), mask.chunk(len(mean)), mean, strict=True
            ):
                energy = row_errors(part, torch.zeros_like(kept), gram).sum()
                total += float(row_errors(part, kept, gram).sum() / energy)
    return total


CONVS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "padded": (nn.Conv2d(3, 4, 3, padding=1, bias=False), (2, 3, 5, 5)),
    "strided": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1), bias=False), (2, 3, 7, 6)),
    "dilated": (nn.Conv2d(2, 4, 3, dilation=2, padding=2, bias=False), (2, 2, 7, 7)),
    "same": (nn.Conv2d(2, 4, (3, 5), padding="same", bias=False), (2, 2, 5, 5)),
    "reflected": (nn.Conv2d(2, 4, 3, padding=2, padding_mode="reflect", bias=False), (2, 2, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1, bias=False), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 5, 5)),
    "one": (nn.Conv1d(3, 5, 3, stride=2, bias=False), (2, 3, 9)),
    "three": (nn.Conv3d(2, 3, 2, bias=False), (2, 2, 3, 4, 5)),
    "unbatched": (nn.Conv2d(3, 4, 3, bias=False), (3, 6, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_the_error_of_the_rows_is_what_the_output_of_a_convolution_misses(name: str) -> None:
    conv, shape = CONVS[name]
    module = nn.Sequential(conv)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator)
    (site,) = find_sites(module).sites
    mask = torch.rand(site.shape, generator=generator) < 0.5
    with torch.no_grad(), seen_grams(module, [site]) as grams:
        module(images)
        module(images)
    mean = grams[site.name].mean()
    assert mean is not None
    weight, kept = as_matrix(site, conv.weight.detach()), as_matrix(site, mask)
    assert torch.equal(from_matrix(site, weight), conv.weight)
    errors = torch.cat([
        row_errors(part, own, gram)
        for part, own, gram in zip(
            weight.chunk(len(mean)), kept.chunk(len(mean)), mean, strict=True
        )
    ])  # fmt: skip
    with torch.no_grad():
        conv.weight.mul_(~mask)
        missed = module(images)
    channels = missed.movedim(-len(site.shape) + 1, 0).flatten(1)
    assert torch.allclose(errors, channels.double().square().mean(1), rtol=1e-4)


@pytest.mark.parametrize("make", [mlp, gpt2])
def test_exchanges_lower_what_the_layers_miss(make: Callable[[], Pico]) -> None:
    budget = Budget(density=0.5)
    errors = [
        output_error(make(), masks_of(make(), method, budget))
        for method in (
            Swaps(dense_inputs=1.0, diagonal=1.0),
            Swaps(dense_inputs=1.0),
            Swaps(dense_inputs=1.0, exchange="layer"),
        )
    ]
    assert errors[0] > errors[1] > errors[2]


def test_a_block_goes_on_from_the_one_before_it_and_gives_the_bits_of_a_whole_pass() -> None:
    pico = gpt2()
    run = lambda batch: forward(pico)(pico.module, batch)  # noqa: E731
    batches = batches_of(pico)
    with torch.no_grad():
        stages = stages_of(pico.module, find_sites(pico.module), run, batches[0])
        assert [stage.module for stage in stages] == ["transformer.h.0", "transformer.h.1"]
        assert [stage.continues for stage in stages] == [False, True]
        whole: list[Tensor] = []
        hook = pico.module.transformer.h[1].register_forward_hook(
            lambda _, __, output: whole.append(pico.read(output))
        )
        for batch in batches:
            run(batch)
        hook.remove()
        stream = Stream(module=pico.module, run=run, batches=batches)
        for stage in stages:
            stream.advance(stage)
    for given, wanted in zip(stream.outputs, whole, strict=True):
        assert torch.equal(pico.read(given), wanted)


def test_a_first_block_is_not_run_again_for_the_ones_behind_it() -> None:
    pico, calls = gpt2(), [0, 0]
    for index in range(2):
        block = pico.module.transformer.h[index].mlp
        block.register_forward_hook(lambda *_, i=index: calls.__setitem__(i, calls[i] + 1))
    masks_of(pico, Swaps(), Budget(density=0.5))
    # the stages are found in two passes; then each block runs once to be seen, once to be left
    assert calls == [2 + 2 * 3, 2 + 2 * 3]


def test_outputs_that_skip_blocks_make_a_pass_begin_at_the_input() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, input: Tensor) -> Tensor:
            first = self.blocks[0](input)
            second = self.blocks[1](first)
            return self.blocks[2](first + second)

    torch.manual_seed(0)
    module = Skipping().eval()
    batch = torch.randn(6, 4)
    with torch.no_grad():
        stages = stages_of(module, find_sites(module), module, batch)
    assert [stage.continues for stage in stages] == [False, True, False]
    stream = Stream(module=module, run=module, batches=[batch])
    with torch.no_grad():
        for stage in stages:
            stream.advance(stage)
        assert torch.equal(stream.outputs[0], module(batch))


def test_a_module_that_is_called_twice_sees_both_inputs() -> None:
    pico = shared()
    with torch.no_grad():
        stages = stages_of(
            pico.module, find_sites(pico.module), lambda b: pico.module(**b), pico.inputs
        )
    assert {stage.module: stage.once for stage in stages}["body"] is False
    (body,) = [stage for stage in stages if stage.module == "body"]
    assert isinstance(body, Stage)
    with torch.no_grad(), seen_grams(pico.module, body.sites) as grams:
        pico()
    assert grams["body.weight"].rows == 2 * 5


def test_what_the_blocks_before_lost_is_seen_by_those_behind() -> None:
    """At lambda = 1 the mask is the best there is on the inputs that it was chosen on."""
    pico, budget = mlp(), Budget(density=0.3)
    dense = masks_of(mlp(), Swaps(diagonal=1.0, dense_inputs=1.0), budget)
    masked = masks_of(mlp(), Swaps(diagonal=1.0), budget)
    assert torch.equal(dense["0.weight"], masked["0.weight"])
    assert not torch.equal(dense["3.weight"], masked["3.weight"])
    first, second = pico.module[0], pico.module[3]
    with torch.no_grad():
        first.weight.mul_(masked["0.weight"])
        hidden = torch.relu(first(pico.inputs["input"]))
    gram = blend(hidden.t() @ hidden / len(hidden), 1.0)
    errors = [
        row_errors(second.weight.detach(), masks["3.weight"], gram).sum()
        for masks in (masked, dense)
    ]
    assert float(errors[0]) < float(errors[1])


def test_the_energy_of_a_loss_is_that_of_its_gradient() -> None:
    pico = gpt2()
    sites = find_sites(pico.module).sites
    wanted: dict[str, Tensor] = {}

    def loss(module: nn.Module, batch: Any) -> Tensor:
        return pico.read(module(**batch)).float().square().sum()

    outputs: dict[str, Tensor] = {}
    hooks = [
        pico.module.get_submodule(site.module).register_forward_hook(
            lambda _, __, output, name=site.name: outputs.__setitem__(name, output)
        )
        for site in sites
    ]
    for batch in batches_of(pico):
        value = loss(pico.module, batch)
        for site, gradient in zip(
            sites, torch.autograd.grad(value, [outputs[s.name] for s in sites]), strict=True
        ):
            energy = gradient.double().square().flatten(0, -2).sum(0)
            wanted[site.name] = wanted.get(site.name, 0.0) + energy
    for hook in hooks:
        hook.remove()
    pico.module.requires_grad_(False)
    energy = gradient_energy(pico.module, sites, batches_of(pico), loss, 0)
    for name, value in wanted.items():
        assert torch.allclose(energy[name], value, rtol=1e-5)


def test_labels_are_drawn_from_what_the_network_says() -> None:
    """For a linear layer in front of a softmax: the energy is that of p - onehot(label)."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4)).eval()
    module[0].requires_grad_(False)
    inputs = torch.randn(4_000, 5)
    energy = gradient_energy(
        module, find_sites(module).sites, [inputs], lambda m, batch: m(batch), 1
    )["0.weight"]
    chances = module(inputs).softmax(-1).double()
    assert torch.allclose(energy, (chances * (1 - chances)).sum(0), rtol=0.1)


def loss_of(module: nn.Module, batch: Tensor) -> Tensor:
    return module(batch).square().mean()


def layered() -> tuple[nn.Module, list[Tensor]]:
    """Three layers on correlated inputs, and batches."""
    torch.manual_seed(0)
    mix = torch.randn(12, 12)
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                           nn.Linear(16, 4))  # fmt: skip
    return module, [torch.randn(32, 12) @ mix for _ in range(10)]


def test_global_gives_the_rows_that_matter_more_and_keeps_the_whole_count() -> None:
    module, batches = layered()
    with torch.no_grad():
        module[4].weight[0] *= 10.0
        module[4].weight[1:] *= 0.1
    pico = Pico(module=module.eval(), inputs={"input": batches[0]})
    budget = Budget(density=0.3)
    masks = masks_of(pico, Swaps(exchange="global"), budget)
    assert masks.kept == round(0.3 * masks.total)
    assert int(masks["4.weight"][0].sum()) > int(masks["4.weight"][1:].sum())
    densities = [masks.density_of(name) for name in masks]
    assert max(densities) > min(densities) + 0.05


@pytest.mark.parametrize("pattern", ["block:2x2", "neuron"])
def test_larger_units_are_refused(pattern: str) -> None:
    with pytest.raises(RecipeError, match="exchanges single weights"):
        masks_of(mlp(), Swaps(), Budget(density=0.5, pattern=pattern))


def test_global_refuses_layers_that_it_cannot_see() -> None:
    with pytest.raises(RecipeError, match=r"method\.exchange"):
        masks_of(lstm(), Swaps(exchange="global"), Budget(density=0.5))


@pytest.mark.parametrize(
    "options",
    [{"diagonal": 1.5}, {"diagonal": "some"}, {"dense_inputs": -0.1}, {"pool": -1},
     {"batches": 0}, {"exchange": "column"}, {"error": "none"}],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"method.{next(iter(options))}"):
        Swaps(**options)


def test_a_search_by_swaps_says_which_lambda_it_took(tmp_path: Path) -> None:
    module, batches = layered()
    ticket = slt_compress.search(
        module, batches, method=Swaps(diagonal="auto"), budget=Budget(density=0.4),
        loss_fn=loss_of, out=tmp_path / "t",
    )  # fmt: skip
    assert ticket.masks.kept == round(0.4 * ticket.masks.total)
    assert slt_compress.verify(ticket.path, model=module).ok
    (note,) = [w for w in slt_compress.report(ticket.path).warnings if "diagonal" in w]
    assert note.startswith("swaps takes diagonal=")
    assert " with 0, " in note


def test_a_prior_of_swaps_starts_a_search_with_its_mask(tmp_path: Path) -> None:
    module, batches = layered()
    tickets = {
        name: slt_compress.search(
            module, batches, method=method, budget=Budget(density=0.4), loss_fn=loss_of,
            training=Training(steps=1, lr=1e-9, selections=0), out=tmp_path / name,
        )
        for name, method in (("swaps", Swaps()), ("start", Relaxed(prior="swaps", spread=0.0)))
    }  # fmt: skip
    swapped, start = (tickets[name].masks for name in ("swaps", "start"))
    same = sum(int((swapped[name] == start[name]).sum()) for name in swapped)
    assert same >= 0.99 * swapped.total


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_polish_is_taken_only_if_the_held_out_loss_does_not_rise(
    tmp_path: Path, sign: float
) -> None:
    module, batches = layered()
    dense = layered()[0].eval()

    def loss(network: nn.Module, batch: Tensor) -> Tensor:
        return sign * (network(batch) - dense(batch).detach()).square().mean()

    ticket = slt_compress.search(
        module, batches, method=Relaxed(), budget=Budget(density=0.4), loss_fn=loss,
        training=Training(steps=2, polish=True), out=tmp_path / "t",
    )  # fmt: skip
    assert ticket.masks.kept == round(0.4 * ticket.masks.total)
    (note,) = [w for w in slt_compress.report(ticket.path).warnings if "polish" in w]
    assert ("is taken" in note) == (sign > 0)


def test_a_polish_refuses_signs_and_units_before_any_step(tmp_path: Path) -> None:
    module, batches = layered()
    for method, budget in (
        (EdgePopup(signed=True), Budget(density=0.4)),
        (Relaxed(), Budget(density=0.4, pattern="block:2x2")),
    ):
        with pytest.raises(RecipeError, match=r"training\.polish"):
            slt_compress.search(
                module, batches, method=method, budget=budget, loss_fn=loss_of,
                training=Training(steps=1, polish=True), out=tmp_path / "t",
                on_step=lambda _: pytest.fail("a step was taken"),
            )  # fmt: skip


def test_what_batchnorm_takes_away_is_not_missed() -> None:
    """A convolution in front of a BatchNorm sees its inputs around their mean."""
    pico = conv_net()
    sites = find_sites(pico.module).sites
    centred = sites_in_front_of_batchnorm(pico.module, sites, pico)
    assert centred == {"first.weight"}
    images = pico.inputs["images"]
    with torch.no_grad(), seen_grams(pico.module, sites, centred) as grams:
        pico.module(images)
        pico.module(images + 1.0)
    windows = torch.nn.functional.unfold(
        torch.nn.functional.pad(torch.cat([images, images + 1.0]), (1, 1, 1, 1)), 3
    )
    rows = windows.unflatten(1, (3, 9)).permute(0, 3, 2, 1).flatten(0, 1).flatten(1).double()
    mean = grams["first.weight"].mean()
    assert mean is not None
    assert torch.allclose(mean[0].double(), rows.T.cov(correction=0), atol=1e-4)


def test_an_input_that_was_changed_in_place_is_seen_anew() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).eval()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = module

        def forward(self, input: Tensor) -> Tensor:
            before = self.first(input)
            return before.sum() + self.second(input.relu_()).sum()

    both = Both()
    sites = find_sites(both).sites
    given = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), seen_grams(both, sites) as grams:
        both(given.clone())
    for name, rows in (("first.weight", given), ("second.weight", given.relu())):
        mean = grams[name].mean()
        assert mean is not None
        assert torch.allclose(mean[0], rows.T @ rows / 5, atol=1e-6)
