"""Gating: gates on any kind of module, equal to an oracle, and no trace of them afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from models import PICOS, Pico, conv_net, lstm, mixtral, mlp, shared
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from traces import assert_same, traces

from slt_compress.anatomy.states import set_buffers
from slt_compress.gates import METHODS, Learned, Phase, Relaxed
from slt_compress.gates.base import sample_key
from slt_compress.gates.gating import Gates, gated, read_once
from slt_compress.gates.sampled import Sampled
from slt_compress.masks import Masks, masked_weight
from slt_compress.searching.training import _search_mode
from slt_compress.sites.sites import SitePlan, Targets, find_sites

LEARNED = [name for name, method in METHODS.items() if isinstance(method(), Learned)]
PHASE = Phase(step=2, seed=3)


@pytest.fixture(params=PICOS)
def pico(request: pytest.FixtureRequest) -> Pico:
    return PICOS[request.param]()


def starts(plan: SitePlan, method: Learned) -> dict[str, Tensor]:
    return {
        site.name: method.start(torch.zeros(site.shape), None, sample_key(0, site.name))
        for site in plan.sites
    }


def weight_of(module: nn.Module, name: str) -> Tensor:
    path, _, param = name.rpartition(".")
    value = getattr(module.get_submodule(path), param)
    assert isinstance(value, Tensor)
    return value


@contextmanager
def sampled(
    module: nn.Module, plan: SitePlan, *, method: Learned | None = None, rescale: bool = False
) -> Iterator[Gates]:
    method = method or Relaxed()
    scores = starts(plan, method)
    with gated(module, plan, method=method, scores=scores, rescale=rescale) as gates:
        gates.sample(PHASE, dict.fromkeys(gates.by_name, 0.1))
        yield gates


def abuse(module: nn.Module, gates: Gates, pico: Pico) -> None:
    """What a search does to a module, and more."""
    module.train()
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.momentum = 0.9
    pico().square().sum().backward()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.add_(1.0)
    gates.mask(Masks({n: torch.rand(s.shape) < 0.5 for n, s in gates.scores.items()}), {})
    pico()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("raises", [False, True])
def test_no_trace_is_left(pico: Pico, training: bool, raises: bool) -> None:
    module = pico.module
    expected = pico()
    module.train(training)
    first = next(iter(module.children()), None)
    if first is not None:
        first.train(not training)
    frozen = list(module.parameters())[-1]
    frozen.requires_grad_(False)
    plan = find_sites(module)
    before = traces(module)
    with pytest.raises(RuntimeError, match="in the block") if raises else nothing():  # noqa: SIM117
        with sampled(module, plan) as gates:
            abuse(module, gates, pico)
            if raises:
                raise RuntimeError("in the block")
    assert_same(before, traces(module))
    assert torch.equal(expected, pico.read(module.eval()(**pico.inputs)))


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_no_trace_is_left_where_a_gate_cannot_be_put_on() -> None:
    pico = mlp()
    plan = find_sites(pico.module)
    before = traces(pico.module)
    scores = starts(plan, Relaxed())
    del scores[plan.sites[-1].name]
    with pytest.raises(KeyError), gated(pico.module, plan, method=Relaxed(), scores=scores):
        pass
    assert_same(before, traces(pico.module))


def test_ties_survive() -> None:
    pico = PICOS["gpt2"]()
    with sampled(pico.module, find_sites(pico.module)):
        assert pico.module.lm_head.weight is pico.module.transformer.wte.weight
    assert pico.module.lm_head.weight is pico.module.transformer.wte.weight


@torch.no_grad()  # the fused attention is taken in every case
def test_open_gates_are_the_dense_network(pico: Pico) -> None:
    expected = pico()
    plan = find_sites(pico.module)
    with gated(pico.module, plan) as gates:
        assert gates.scores == {}
        assert torch.equal(pico(), expected)
    with sampled(pico.module, plan) as gates:
        assert not torch.equal(pico(), expected)
        with gates.opened():
            assert torch.equal(pico(), expected)
        assert not torch.equal(pico(), expected)


def test_opened_gates_see_the_dense_buffers_and_give_the_others_back() -> None:
    pico = conv_net()
    expected = pico()
    with sampled(pico.module, find_sites(pico.module)) as gates:
        pico.module.norm.running_mean.fill_(7.0)
        with gates.opened():
            assert torch.equal(pico(), expected)
        assert pico.module.norm.running_mean.unique().tolist() == [7.0]


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy whose parametrized layers, all of them Linear here, are plain ones."""
    copied = copy.deepcopy(module)
    made: dict[int, nn.Module] = {}
    for name, child in module._modules.items():
        if child is not None and parametrize.is_parametrized(child):
            assert isinstance(child, nn.Linear)
            plain = made.setdefault(id(child), nn.Linear(child.in_features, child.out_features))
            plain.load_state_dict({"weight": child.weight, "bias": child.bias})
            setattr(copied, name, plain)
    return copied


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("once", [False, True])
def test_outputs_and_gradients_are_those_of_a_functional_call(
    pico: Pico, method: str, rescale: bool, once: bool
) -> None:
    module, gate = pico.module, METHODS[method]()
    assert isinstance(gate, Learned)
    plan, plain = find_sites(module), plain_copy(module)
    weights = {site.name: weight_of(module, site.name).detach() for site in plan.sites}
    with sampled(module, plan, method=gate, rescale=rescale) as gates:
        scores = {n: s.detach().clone().requires_grad_() for n, s in gates.scores.items()}
        effective = {
            name: gate.effective(score, weights[name], gates.by_name[name].sample)
            for name, score in scores.items()
        }
        effective |= {n: effective[site.name] for site in plan.sites for n in site.tied}
        expected = pico.read(
            torch.func.functional_call(plain, effective, (), dict(pico.inputs), tie_weights=False)
        )
        with read_once(module, plan) if once else nothing():
            output = pico()
            output.square().sum().backward()
        expected.square().sum().backward()
        assert torch.allclose(output, expected, atol=1e-6)
        for name, score in gates.scores.items():
            oracle = scores[name].grad
            assert oracle is not None
            assert score.grad is not None
            assert torch.allclose(score.grad, oracle, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("method", LEARNED)
def test_every_score_gets_a_gradient_and_no_weight_does(pico: Pico, method: str) -> None:
    gate = METHODS[method]()
    assert isinstance(gate, Learned)
    with sampled(pico.module, find_sites(pico.module), method=gate) as gates:
        pico().square().sum().backward()
        for name, score in gates.scores.items():
            assert score.grad is not None, name
            assert bool(score.grad.any()), name
        own = {id(score) for score in gates.scores.values()}
        others = [p for p in pico.module.parameters() if id(p) not in own]
        assert others
        assert not any(p.requires_grad or p.grad is not None for p in others)


def test_masked_weights_are_the_weights_or_zero(pico: Pico) -> None:
    plan, plain = find_sites(pico.module), plain_copy(pico.module)
    masks = Masks({site.name: torch.rand(site.shape) < 0.5 for site in plan.sites})
    with gated(pico.module, plan) as gates, torch.no_grad():
        gates.mask(masks, {})
        for name, mask in masks.items():
            own = weight_of(plain, name)
            assert torch.equal(weight_of(pico.module, name), torch.where(mask, own, 0.0))
            own.copy_(torch.where(mask, own, 0.0))
        expected = pico.read(plain(**pico.inputs))
        assert torch.allclose(pico(), expected, atol=1e-6)


def test_a_gain_is_multiplied_in_fp32_and_rounded_once_and_kept_bits_are_kept() -> None:
    weight = torch.tensor([1.5, -0.0, float("nan"), 3e-39, 7.0])
    mask = torch.tensor([True, True, True, True, False])
    same = masked_weight(weight, mask, 1.0)
    assert same.view(torch.int32)[:4].equal(weight.view(torch.int32)[:4])
    assert same[4] == 0.0
    half = torch.tensor([3.0, 0.2], dtype=torch.bfloat16)
    gained = masked_weight(half, torch.tensor([True, False]), 1.3)
    assert gained.dtype is torch.bfloat16
    assert gained.tolist() == [3.90625, 0.0]  # bf16(3.9); a gain rounded first gives 3.890625


class Counting:
    """The relaxed gate, counting how often a sample is drawn."""

    name = "counting"

    def __init__(self) -> None:
        self.calls = 0

    start, shifts = Sampled.start, Sampled.shifts
    spread, prior_spread, signed = 0.01, 1.0, False

    def effective(self, *arguments: Any) -> Tensor:
        self.calls += 1
        return Relaxed().effective(*arguments)


def eager_mixtral() -> Pico:
    """Experts that read their packed weights one after the other."""
    pico = mixtral()
    pico.module.set_experts_implementation("eager")
    return pico


@pytest.mark.parametrize("make", [lstm, shared, eager_mixtral])
def test_a_weight_that_is_read_often_has_one_sample_a_step(make: Callable[[], Pico]) -> None:
    pico, method = make(), Counting()
    plan = find_sites(pico.module)
    with sampled(pico.module, plan, method=method) as gates:
        with read_once(pico.module, plan):
            pico().square().sum().backward()
        # once in each module that holds the weight, however often it reads it
        owners = {
            (pico.module.get_submodule(path), param)
            for site in plan.sites for path, param in site.places
        }  # fmt: skip
        assert method.calls == len(owners)
        for site in plan.sites:
            found = [
                weight_of(pico.module, f"{path}.{param}".lstrip(".")) for path, param in site.places
            ]
            assert all(torch.equal(each, found[0]) for each in found)
        assert all(score.grad is not None for score in gates.scores.values())
        reads = [weight_of(pico.module, plan.sites[0].name) for _ in range(2)]
        assert torch.equal(*reads)
        gates.sample(Phase(step=9, seed=3), dict.fromkeys(gates.by_name, 0.1))
        assert not torch.equal(reads[0], weight_of(pico.module, plan.sites[0].name))


def test_sites_of_one_shape_have_samples_of_their_own() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[1].weight.fill_(1.0)
    plan = find_sites(module)
    scores = {site.name: torch.full((8, 8), 0.5) for site in plan.sites}
    with gated(module, plan, method=Relaxed(), scores=scores) as gates:
        gates.sample(PHASE, dict.fromkeys(scores, 0.0))
        assert not torch.equal(module[0].weight, module[1].weight)


class Checkpointed(nn.Module):
    def __init__(self, *, on: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.on = on
        self.inner = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, input: Tensor) -> Tensor:
        hidden = checkpoint(self.inner, input, use_reentrant=False) if self.on else None
        return self.head(self.inner(input) if hidden is None else hidden)


def gradients(module: nn.Module, inputs: Mapping[str, Any], *, once: bool) -> dict[str, Tensor]:
    plan = find_sites(module)
    pico = Pico(module=module, inputs=inputs)
    with sampled(module, plan) as gates:
        with read_once(module, plan) if once else nothing():
            pico().square().sum().backward()
        return {n: s.grad for n, s in gates.scores.items() if s.grad is not None}


@pytest.mark.parametrize("once", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(once: bool) -> None:
    inputs = {"input": torch.randn(4, 6)}
    plain, saving = (gradients(Checkpointed(on=on), inputs, once=once) for on in (False, True))
    assert len(plain) == 3
    assert plain.keys() == saving.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, saving[name], atol=1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_llama_gives_the_same_gradients(reentrant: bool) -> None:
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(0, 20, (2, 6)), "use_cache": False}
    found = []
    for saving in (False, True):
        torch.manual_seed(0)
        module = transformers.LlamaForCausalLM(config).train()
        if saving:
            newer = hasattr(module, "activation_checkpointing_enable")
            enable = "activation_checkpointing_enable" if newer else "gradient_checkpointing_enable"
            getattr(module, enable)({"use_reentrant": reentrant})
        forwards: list[nn.Module] = []
        module.model.layers[0].mlp.register_forward_pre_hook(lambda m, _: forwards.append(m))  # noqa: B023
        found.append(gradients(module, inputs, once=True))
        assert len(forwards) == 1 + saving
    assert len(found[0]) == 15
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-7), name


def test_reversible_layers_give_gradients_to_every_score() -> None:
    torch.manual_seed(0)
    config = transformers.ReformerConfig(
        vocab_size=20, hidden_size=16, feed_forward_size=16, num_attention_heads=2,
        attention_head_size=8, attn_layers=["local", "local"], axial_pos_embds=False,
        max_position_embeddings=16, local_attn_chunk_length=4, is_decoder=True,
    )  # fmt: skip
    module = transformers.ReformerModelWithLMHead(config).eval()
    _search_mode(module, "frozen")
    found = gradients(module, {"input_ids": torch.randint(0, 20, (2, 8))}, once=True)
    assert found.keys() == {site.name for site in find_sites(module).sites}
    assert all(bool(gradient.any()) for gradient in found.values())
    assert not module.get_input_embeddings()._forward_hooks


# dynamo of torch 2.11 makes an object of torch's Function, and steps around generators
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning")
# torch's own tracer looks at the .grad of what it resumes with
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_compiled_module_reads_every_new_sample_and_mask() -> None:
    pico = mlp()
    plan = find_sites(pico.module)
    compiled = replace(pico, module=torch.compile(pico.module, backend="eager"))
    with sampled(pico.module, plan) as gates:
        for step in range(2):
            gates.sample(Phase(step=step, seed=3), dict.fromkeys(gates.by_name, 0.1))
            found = []
            for each in (pico, compiled):
                output = each()
                output.square().sum().backward()
                found.append((output, {n: s.grad for n, s in gates.scores.items()}))
                pico.module.zero_grad(set_to_none=True)
            (output, gradients), (output_compiled, gradients_compiled) = found
            assert torch.allclose(output_compiled, output, atol=1e-6)
            for site, gradient in gradients.items():
                assert gradient is not None
                assert torch.allclose(gradients_compiled[site], gradient, atol=1e-5), site
        gates.mask(Masks({n: torch.rand(s.shape) < 0.5 for n, s in gates.scores.items()}), {})
        assert torch.allclose(compiled(), pico(), atol=1e-6)
        assert not torch.allclose(compiled(), output, atol=1e-3)
    torch.compiler.reset()


def test_a_weight_under_spectral_norm_is_gated_and_its_vectors_come_back() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 2))
    module.train()
    before = traces(module)
    plan = find_sites(module)
    assert_same(before, traces(module))
    assert [site.name for site in plan.sites] == ["0.weight", "1.weight"]
    pico = Pico(module=module, inputs={"input": torch.randn(3, 6)})
    with sampled(module, plan) as gates:
        pico().square().sum().backward()
        assert all(bool(score.grad.any()) for score in gates.scores.values())
    after = traces(module)
    assert_same(before, after)


def test_gates_go_on_chosen_sites_only() -> None:
    pico = mlp()
    plan = find_sites(pico.module, Targets(include=("3.*",)))
    first = pico.module[0].weight
    with sampled(pico.module, plan):
        assert pico.module[0].weight is first
        assert isinstance(pico.module[3], nn.Linear)
        assert parametrize.is_parametrized(pico.module[3])


def test_set_buffers_leaves_the_others_alone() -> None:
    module = nn.BatchNorm1d(3)
    set_buffers(module, {"running_mean": torch.tensor([1.0, 2.0, 3.0]), "foreign": torch.ones(1)})
    assert module.running_mean.tolist() == [1.0, 2.0, 3.0]
    assert module.running_var.tolist() == [1.0, 1.0, 1.0]


def test_a_sample_key_is_the_same_everywhere() -> None:
    assert sample_key(0, "0:fc.weight") == 3925146041566910958
    assert len({sample_key(seed, text) for seed in range(10) for text in "abc"}) == 30
    assert all(0 <= sample_key(seed, "x") < 2**63 for seed in range(20))


def test_a_module_that_exchanges_its_parts_as_it_runs() -> None:
    class Short(nn.Module):
        def __init__(self, query: nn.Linear) -> None:
            super().__init__()
            self.query = query
            self.extra = nn.Dropout(0.1)

        def forward(self, input: Tensor) -> Tensor:
            return self.query(input)

    class Exchanging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.Sequential(nn.Linear(4, 4))
            self.attention.query = self.attention[0]

        def forward(self, input: Tensor) -> Tensor:
            if not isinstance(self.attention, Short):
                self.attention = Short(self.attention.query)
            return self.attention(input)

    module = Exchanging().eval()
    weight = module.attention[0].weight
    plan = find_sites(module, Targets(include=("attention.query.weight",)))
    plan = SitePlan(
        sites=(replace(plan.sites[0], module="attention.query", tied=()),), skipped=plan.skipped
    )
    with gated(module, plan) as gates:
        gates.mask(Masks({"attention.query.weight": torch.zeros(4, 4, dtype=torch.bool)}), {})
        output = module(torch.ones(1, 4))
        assert torch.equal(output[0], module.attention.query.bias)
    assert module.attention.query.weight is weight


@pytest.mark.parametrize("channels", [1, 3, 16])
def test_strided_pointwise_convolutions_read_few_channels_first(channels):
    # oneDNN overflows its workspace where they are last; see slt_compress/anatomy/memory_formats.py
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow = nn.Conv2d(channels, 8, 1, stride=2)
            self.wide = nn.Conv2d(channels, 8, 3, stride=2, padding=1)

        def forward(self, pictures):
            return self.narrow(pictures) + self.wide(pictures)

    module = Stem()
    seen = {}
    for name, child in module.named_children():
        child.register_forward_hook(lambda _, inputs, __, n=name: seen.update({n: inputs[0]}))
    pictures = torch.randn(2, channels, 8, 8).to(memory_format=torch.channels_last)
    dense = module(pictures)
    with gated(module, find_sites(module)):
        module(pictures)
    height, width = (8 * channels, channels) if channels == 16 else (8, 1)
    assert seen["narrow"].stride()[2:] == (height, width)
    assert seen["wide"].stride() == pictures.stride()
    assert torch.equal(seen["narrow"], pictures)
    assert torch.allclose(module(pictures), dense)
    assert seen["narrow"].stride() == pictures.stride()  # nothing stays behind
