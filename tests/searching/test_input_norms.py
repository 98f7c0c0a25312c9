"""Calibration: the norm of every weight's input, against an oracle; and what ranks by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from models import Pico, attention, conv_net, gpt2, lstm, mixtral, mlp
from torch import Tensor, nn

import slt_compress
from slt_compress.anatomy.states import evaluating
from slt_compress.gates import Inputs, Learned, Magnitude, Method, Relaxed, Wanda
from slt_compress.searching.first_scores import first_scores
from slt_compress.searching.input_norms import seen_inputs, summed_dims, unseen_note
from slt_compress.sites.budget import Budget, binarize
from slt_compress.sites.sites import SitePlan, find_sites

WHOLE = Budget(density=0.5)


def seen_of(pico: Pico) -> tuple[SitePlan, dict[str, Inputs], dict[str, str]]:
    plan = find_sites(pico.module)
    with torch.no_grad(), evaluating(pico.module), seen_inputs(pico.module, plan) as seen:
        pico()
        pico()  # the mean over rows is that of one pass
    return plan, seen.inputs(), seen.unseen()


def column_norms(rows: Tensor) -> Tensor:
    return rows.double().square().mean(0).sqrt()


def test_a_linear_layer_sees_the_norm_of_each_feature() -> None:
    pico = mlp()
    plan, inputs, unseen = seen_of(pico)
    assert unseen == {}
    rows = pico.inputs["input"]
    assert torch.allclose(inputs["0.weight"].norms, column_norms(rows)[None])
    hidden = torch.relu(pico.module[0](rows))
    assert torch.allclose(inputs["3.weight"].norms, column_norms(hidden.detach())[None])
    assert [summed_dims(site) for site in plan.sites] == [(1,), (1,)]


CONVS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(3, 4, 3), (2, 3, 6, 7)),
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 5)),
    "strided": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(0, 1)), (2, 3, 7, 6)),
    "dilated": (nn.Conv2d(2, 4, 3, dilation=2, padding=2), (2, 2, 7, 7)),
    "same": (nn.Conv2d(2, 4, (3, 5), padding="same"), (2, 2, 5, 5)),
    "reflected": (nn.Conv2d(2, 4, 3, padding=2, padding_mode="reflect"), (2, 2, 5, 5)),
    "circular": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 2, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5)),
    "one": (nn.Conv1d(3, 5, 3, stride=2), (2, 3, 9)),
    "three": (nn.Conv3d(2, 3, 2), (2, 2, 3, 4, 5)),
    "unbatched": (nn.Conv2d(3, 4, 3), (3, 6, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_sees_the_norm_of_each_channel_at_each_offset(name: str) -> None:
    """What the weight at [o, i, *offset] multiplies, one weight of the kernel at a time."""
    conv, shape = CONVS[name]
    module = nn.Sequential(conv)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    _, inputs, unseen = seen_of(Pico(module=module, inputs={"input": images}))
    assert unseen == {}
    norms = inputs["0.weight"].norms
    assert norms is not None
    norms = norms.expand(conv.weight.shape)
    assert inputs["0.weight"].dims == tuple(range(1, conv.weight.dim()))
    for flat in range(0, conv.weight.numel(), 3):
        at = torch.unravel_index(torch.tensor(flat), conv.weight.shape)
        with torch.no_grad():
            conv.weight.zero_()[at] = 1.0
            conv.bias.zero_()
            output = conv(images)
        channel = output[at[0]] if output.dim() < conv.weight.dim() else output[:, at[0]]
        assert float(norms[at]) == pytest.approx(
            float(channel.double().square().mean().sqrt()), rel=1e-5
        )


def test_a_convolution_that_pads_on_its_own_is_seen_as_far_as_can_be() -> None:
    class Same(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.conv2d(F.pad(input, (1, 1, 1, 1)), self.weight)

    module = nn.Sequential(Same(2, 3, 3, bias=False))
    _, inputs, _ = seen_of(Pico(module=module, inputs={"input": torch.ones(2, 2, 1, 2)}))
    norms = inputs["0.weight"].norms
    assert norms is not None
    assert norms[0, :, 0, 0].tolist() == [1.0, 1.0]


def test_a_transposed_convolution_and_transformers_conv1d_have_their_inputs_first() -> None:
    pico = conv_net()
    images = pico.inputs["images"]
    _, inputs, unseen = seen_of(pico)
    assert unseen == {}
    hidden: list[Tensor] = []
    pico.module.up.register_forward_pre_hook(lambda _, args: hidden.append(args[0].detach()))
    pico.module(images)
    rows = hidden[0].permute(0, 2, 3, 1).reshape(-1, 8)
    assert torch.allclose(inputs["up.weight"].norms, column_norms(rows)[:, None, None, None])
    assert inputs["up.weight"].dims == (0, 2, 3)
    plan, inputs, unseen = seen_of(gpt2())
    assert unseen == {}
    for site in plan.sites:
        assert inputs[site.name].dims == (0,)
        assert inputs[site.name].norms.shape == (site.shape[0], 1)


def test_what_cannot_be_seen_is_named_with_the_reason() -> None:
    for pico, names in (
        (lstm(), None),
        (attention(), {"attention.in_proj_weight", "attention.out_proj.weight"}),
        (mixtral(), None),
    ):
        plan, inputs, unseen = seen_of(pico)
        assert inputs.keys() == {site.name for site in plan.sites}
        assert {name for name, found in inputs.items() if found.norms is None} == unseen.keys()
        assert names is None or names == unseen.keys()
        assert not any(child._forward_pre_hooks for child in pico.module.modules())
    assert len(seen_of(lstm())[2]) == 8
    assert all("experts" in name for name in seen_of(mixtral())[2])
    assert "does not call" in seen_of(attention())[2]["attention.out_proj.weight"]
    note = unseen_note("wanda", seen_of(lstm())[2])
    assert note.startswith("wanda ranks 8 sites by magnitude alone (weight_ih_l0: LSTM has no")
    assert note.endswith("and 5 more)")


def test_hooks_go_also_where_the_forward_raises() -> None:
    pico = mlp()
    with pytest.raises(RuntimeError), seen_inputs(pico.module, find_sites(pico.module)):
        pico.module(torch.ones(2, 5))
    assert not any(child._forward_pre_hooks for child in pico.module.modules())


def inputs_of(norms: Tensor | None, dims: tuple[int, ...] = (1,)) -> Inputs:
    return Inputs(dims=dims, norms=norms)


def test_wanda_is_the_magnitude_times_the_norm() -> None:
    weight, norms = torch.randn(8, 5), torch.rand(1, 5).double()
    score = Wanda(per_row=False).score(weight, 1, inputs_of(norms))
    assert torch.allclose(score, weight.abs().double() * norms)
    unseen = Wanda(per_row=False).score(weight, 1, inputs_of(None))
    assert torch.equal(unseen, Magnitude().score(weight, 1))


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((30, 20), (1,)), ((20, 30), (0,)), ((6, 4, 3, 2), (1, 2, 3)), ((4, 6, 3, 2), (0, 2, 3)),
     ((3, 10, 8), (2,)), ((3, 8, 10), (1,))],
)  # fmt: skip
@pytest.mark.parametrize("density", [0.1, 0.5, 0.83])
def test_per_row_keeps_the_same_share_of_each_row_and_the_highest_of_it(
    shape: tuple[int, ...], dims: tuple[int, ...], density: float
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    row = (slice(None), *(0 for _ in shape[1:])) if 0 not in dims else (0, slice(None))
    with torch.no_grad():
        weight[row] *= 100  # one row, or one column, outweighs the others
    norms = torch.rand([n if d in dims else 1 for d, n in enumerate(shape)]).double() + 0.1
    score = Wanda().score(weight, 3, inputs_of(norms, dims))
    mask = binarize({"w": score}, Budget(density=density))["w"]
    assert int(mask.sum()) == round(density * mask.numel())
    others = [d for d in range(len(shape)) if d not in dims]
    order = (*others, *dims)
    products = (weight.abs().double() * norms).permute(order).flatten(len(others))
    kept = mask.permute(order).flatten(len(others))
    products, kept = products.flatten(0, -2), kept.flatten(0, -2)
    counts = kept.sum(1)
    assert int(counts.max()) - int(counts.min()) <= 1
    for values, row_mask in zip(products, kept, strict=True):
        if row_mask.any() and not row_mask.all():
            assert values[row_mask].min() >= values[~row_mask].max()


def test_per_row_favours_no_rows_where_the_count_does_not_divide() -> None:
    weight = torch.randn(400, 7)
    score = Wanda().score(weight, 3, inputs_of(None))
    counts = binarize({"w": score}, Budget(density=0.5))["w"].sum(1)
    assert int(counts.sum()) == 1_400
    assert int(counts[:200].sum()) == pytest.approx(700, abs=40)


def test_an_input_that_is_always_zero_comes_last_in_the_order_of_magnitudes() -> None:
    weight = torch.tensor([[5.0, 1.0, 9.0]])
    score = Wanda(per_row=False).score(
        weight, 0, inputs_of(torch.tensor([[0.0, 1.0, 0.0]]).double())
    )
    assert score.argsort(descending=True).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("method", [Magnitude(), Wanda(per_row=False)])
def test_the_scope_of_the_budget_decides_what_raw_scores_compete_with(method: Any) -> None:
    large, small = torch.randn(40, 50) * 3, torch.randn(40, 50)
    scores = {
        name: method.score(weight, 1, inputs_of(None))
        for name, weight in (("large", large), ("small", small))
    }
    whole = binarize(scores, Budget(density=0.2, floor=0.0))
    assert whole.kept == 800
    both = torch.cat([large.reshape(-1), small.reshape(-1)]).abs()
    threshold = both.topk(800).values[-1]
    assert torch.equal(whole["large"], large.abs() >= threshold)
    assert torch.equal(whole["small"], small.abs() >= threshold)
    assert whole.density_of("large") > 0.3
    layers = binarize(scores, Budget(density=0.2, scope="layer"))
    assert [layers.density_of(name) for name in ("large", "small")] == [0.2, 0.2]
    floored = binarize(scores, Budget(density=0.001, floor=1.0))
    assert int(floored["small"].sum()) == 2


def start_of(module: nn.Module, method: Method, batches: list[Any], **options: Any) -> Any:
    plan = find_sites(module)
    weights = {site.name: module.get_parameter(site.name).detach() for site in plan.sites}
    given = {"budget": WHOLE, "random_init": False, "seed": 0, **options}
    return first_scores(
        module, plan, method, weights, batches, lambda model, batch: model(batch), **given
    )


def skewed() -> tuple[nn.Module, list[Tensor]]:
    """A layer whose second feature is a hundred times larger than its others."""
    torch.manual_seed(0)
    scale = torch.ones(6)
    scale[1] = 100.0
    return nn.Sequential(nn.Linear(6, 4)), [torch.randn(9, 6) * scale for _ in range(3)]


def test_a_prior_orders_the_first_scores_of_a_pretrained_network_only() -> None:
    module, batches = skewed()
    weight = module[0].weight.detach()
    orders = {}
    for prior in ("magnitude", "wanda", "none"):
        method = Relaxed(prior=prior)
        assert isinstance(method, Learned)
        scores, notes = start_of(module, method, batches)
        assert notes == ()
        orders[prior] = scores["0.weight"].reshape(-1).argsort().tolist()
        random, _ = start_of(module, method, batches, random_init=True)
        assert float(random["0.weight"].std()) < 0.05
    assert orders["magnitude"] == weight.abs().reshape(-1).argsort().tolist()
    norms = column_norms(torch.cat(batches))
    assert orders["wanda"] == (weight.abs() * norms).reshape(-1).argsort().tolist()
    assert orders["none"] not in (orders["magnitude"], orders["wanda"])


def test_calibration_leaves_the_module_as_it_was_and_sees_few_batches() -> None:
    module, batches = skewed()
    module.train()
    calls: list[Tensor] = []
    module.register_forward_pre_hook(lambda m, args: calls.append(torch.tensor(m.training)))
    start_of(module, Wanda(), batches * 20)
    assert len(calls) == 16
    assert not any(calls)
    assert module.training
    assert module[0].weight.grad is None
    start_of(module, Magnitude(), batches)
    assert len(calls) == 16


def test_a_search_by_wanda_says_what_it_could_not_see(tmp_path: Path) -> None:
    torch.manual_seed(0)

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, values: Tensor) -> Tensor:
            return self.head(self.lstm(values)[0][:, -1])

    module = Sequence()
    ticket = slt_compress.search(
        module, [torch.randn(3, 5, 4) for _ in range(4)], method=Wanda(), budget=WHOLE,
        loss_fn=lambda model, batch: model(batch).square().mean(), out=tmp_path / "t",
    )  # fmt: skip
    notes = [w for w in slt_compress.report(ticket.path).warnings if "wanda" in w]
    assert notes == [
        "wanda ranks 2 sites by magnitude alone (lstm.weight_ih_l0: LSTM has no single input "
        "that its weight multiplies; lstm.weight_hh_l0: LSTM has no single input that its weight "
        "multiplies)"
    ]
    assert ticket.masks.kept == round(0.5 * ticket.masks.total)
    assert slt_compress.verify(ticket.path, model=module).ok


def test_the_calibrated_prior_works_on_a_transformer_in_bf16() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    module = transformers.GPT2LMHeadModel(config).bfloat16().eval()
    scores, notes = start_of(module, Relaxed(prior="wanda"), [torch.randint(0, 20, (2, 7))])
    assert notes == ()
    assert all(score.isfinite().all() and score.std() > 1 for score in scores.values())
