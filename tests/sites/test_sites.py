"""Sites: every parameter of any model is gated or skipped with the reason, exactly once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import transformers as tf
from models import PICOS
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.errors import TargetError
from slt_compress.sites.sites import SitePlan, Targets, find_sites

TEXT: dict[str, Any] = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "image_size": 32, "patch_size": 16,
}  # fmt: skip
T5: dict[str, Any] = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_heads": 2}
SPEECH: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3), "classifier_proj_size": 8,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip

# model, and the leaves of its module names that hold sites (a pretrained head is none)
TRANSFORMERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bert": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**TEXT)), "query key value dense"
    ),
    "bert-mlm": (lambda: tf.BertForMaskedLM(tf.BertConfig(**TEXT)), "query key value dense"),
    "deberta-v2": (
        lambda: tf.DebertaV2ForSequenceClassification(
            tf.DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
        "query_proj key_proj value_proj pos_key_proj pos_query_proj dense",
    ),
    "gpt2": (
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2)),
        "c_attn c_proj c_fc",
    ),
    "llama": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)),
        "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj",
    ),
    "qwen2-moe": (
        lambda: tf.Qwen2MoeForCausalLM(
            tf.Qwen2MoeConfig(**TEXT, moe_intermediate_size=8, num_experts=3)
        ),
        "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj experts shared_expert_gate",
    ),
    "gpt-oss": (
        lambda: tf.GptOssForCausalLM(
            tf.GptOssConfig(**TEXT, num_local_experts=3, head_dim=8, num_key_value_heads=1)
        ),
        "q_proj k_proj v_proj o_proj experts",
    ),
    "t5": (
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(**T5, num_layers=1)
        ),
        "q k v o wi wo",
    ),
    "mamba": (
        lambda: tf.MambaForCausalLM(
            tf.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)
        ),
        "conv1d in_proj x_proj dt_proj out_proj",
    ),
    "xlnet": (
        lambda: tf.XLNetForSequenceClassification(
            tf.XLNetConfig(vocab_size=32, d_model=16, n_layer=1, n_head=2, d_inner=16)
        ),
        "rel_attn layer_1 layer_2",
    ),
    "vit": (
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**IMAGE)),
        "projection q_proj k_proj v_proj o_proj query key value dense fc1 fc2",
    ),
    "beit": (
        lambda: tf.BeitForImageClassification(
            tf.BeitConfig(**IMAGE, use_relative_position_bias=True)
        ),
        "projection q_proj k_proj v_proj o_proj query key value dense fc1 fc2",
    ),
    "wav2vec2": (
        lambda: tf.Wav2Vec2ForSequenceClassification(tf.Wav2Vec2Config(**SPEECH)),
        "conv projection k_proj v_proj q_proj out_proj intermediate_dense output_dense",
    ),
}  # fmt: skip

TIMM = (
    "resnet18", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224", "nf_resnet26", "convnext_atto", "mixer_s16_224", "levit_128s",
    "tiny_vit_5m_224", "xcit_nano_12_p16_224", "sequencer2d_s", "coat_lite_tiny", "mvitv2_tiny",
    "swiftformer_xs",
)  # fmt: skip

# what no site's own name may hold in any of these models
NEVER = ("bias", "norm", "embed", "token", "table", "temperature", "gamma", "gain", "scale", "log")


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def assert_complete(module: nn.Module, plan: SitePlan) -> None:
    """Every parameter is there exactly once; a parametrized weight beside its sources."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    virtual = {
        f"{path}.{param}".lstrip(".")
        for path, child in module.named_modules(remove_duplicate=False)
        if parametrize.is_parametrized(child)
        for param in child.parametrizations
    }
    sites = [site.name for site in plan.sites]
    assert len(sites) == len(set(sites))
    assert set(sites) | set(plan.skipped) == names | virtual
    assert not set(sites) & set(plan.skipped)
    assert all(plan.skipped.values())
    for site in plan.sites:
        weight = getattr(module.get_submodule(site.module), site.param)
        assert site.shape == tuple(weight.shape)
        assert site.numel == weight.numel()
        assert len(site.shape) >= 2
        assert 0 <= site.input_dim < len(site.shape)
    assert plan.gated == sum(site.numel for site in plan.sites)


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("gate_head", [False, True])
def test_transformers_models(name: str, gate_head: bool) -> None:
    build, leaves = TRANSFORMERS[name]
    module = on_meta(build)
    plan = find_sites(module, gate_head=gate_head)
    assert_complete(module, plan)
    base = f"{module.base_model_prefix}." if module.base_model is not module else ""
    inside = [site for site in plan.sites if site.name.startswith(base)]
    assert {site.module.rpartition(".")[2] for site in inside} <= set(leaves.split())
    assert "lm_head.weight" not in {site.name for site in plan.sites} or gate_head
    assert len(inside) == len(plan.sites) or gate_head
    for path, child in module.named_modules():
        if isinstance(child, nn.Linear) and path.startswith(base) and path.endswith(".dense"):
            assert f"{path}.weight" in {site.name for site in inside}


@pytest.mark.parametrize("name", TIMM)
def test_timm_models(name: str) -> None:
    module = on_meta(lambda: timm.create_model(name))
    plan = find_sites(module, gate_head=False)
    assert_complete(module, plan)
    heads = {n for n, why in plan.skipped.items() if why == "task head of a pretrained checkpoint"}
    assert heads
    assert all(name.startswith(("head", "fc", "classifier")) for name in heads)
    for site in plan.sites:
        assert not any(word in site.param for word in NEVER), site.name
    matrices = (nn.Linear, nn.Conv2d)
    gated = {site.module for site in plan.sites}
    for path, child in module.named_modules(remove_duplicate=False):
        if isinstance(child, matrices) and path not in gated:
            assert f"{path}.weight" in heads or "tied" in plan.skipped[f"{path}.weight"]
    assert find_sites(module).gated > plan.gated


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_nets(name: str) -> None:
    module = on_meta(lambda: REFERENCE[name].build(10))
    plan = find_sites(module, gate_head=True)
    assert_complete(module, plan)
    assert {why for why in plan.skipped.values()} <= {"bias", "one-dimensional"}
    assert len(find_sites(module, gate_head=False).sites) == len(plan.sites) - 1


@pytest.mark.parametrize("name", PICOS)
def test_pico_models(name: str) -> None:
    module = PICOS[name]().module
    assert_complete(module, find_sites(module))


def test_the_reasons_are_told() -> None:
    gpt2 = find_sites(PICOS["gpt2"]().module).skipped
    assert gpt2["transformer.wte.weight"] == "tied: the same tensor as lm_head.weight"
    assert gpt2["lm_head.weight"] == "tied: the same tensor as transformer.wte.weight"
    assert gpt2["transformer.wpe.weight"] == "embedding: looked up, not multiplied"
    assert gpt2["transformer.ln_f.weight"] == "one-dimensional"
    assert gpt2["transformer.ln_f.bias"] == "bias"
    mixtral = find_sites(PICOS["mixtral"]().module).skipped
    assert mixtral["model.layers.0.mlp.gate.weight"] == "router of experts"
    normed = find_sites(PICOS["weight-norm"]().module).skipped
    source = "source of the parametrized weight 0.weight"
    assert normed["0.parametrizations.weight.original0"] == source
    vit = on_meta(lambda: timm.create_model("vit_tiny_patch16_224"))
    found = find_sites(vit, gate_head=False).skipped
    added = "position, token or table: added or looked up, not multiplied"
    assert (found["cls_token"], found["pos_embed"]) == (added, added)
    assert found["head.weight"] == "task head of a pretrained checkpoint"


def test_kinds_and_the_dimension_of_the_inputs() -> None:
    def facts(name: str) -> dict[str, tuple[str, int]]:
        return {s.name: (s.kind, s.input_dim) for s in find_sites(PICOS[name]().module).sites}

    assert facts("conv-net") == {
        "first.weight": ("conv", 1),
        "depthwise.weight": ("conv", 1),
        "up.weight": ("transposed-conv", 0),
        "head.weight": ("linear", 1),
    }
    assert set(facts("gpt2").values()) == {("linear", 0)}
    assert set(facts("lstm").values()) == {("recurrent", 1)}
    assert facts("mixtral")["model.layers.0.mlp.experts.down_proj"] == ("experts", 2)
    oss = find_sites(on_meta(TRANSFORMERS["gpt-oss"][0])).sites
    assert {s.input_dim for s in oss if s.kind == "experts"} == {1}


class Own(nn.Module):
    """Bare parameters of all sorts, one of them under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(3, 4))
        self.first = nn.Parameter(torch.zeros(3, 4))
        self.second = self.first
        self.counts = nn.Parameter(torch.zeros(2, 2, dtype=torch.int64), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.row = nn.Parameter(torch.zeros(1, 4))


def test_bare_parameters() -> None:
    module = Own()
    plan = find_sites(module)
    assert_complete(module, plan)
    assert [(site.name, site.tied) for site in plan.sites] == [
        ("matrix", ()), ("first", ("second",))
    ]  # fmt: skip
    assert plan.skipped == {
        "second": "tied: gated as first",
        "counts": "not floating point (torch.int64)",
        "empty": "empty",
        "row": "one-dimensional",
    }


def test_a_shared_module_is_gated_once() -> None:
    layer = nn.Linear(4, 4)
    module = nn.Sequential(layer, nn.Linear(4, 4), layer)
    plan = find_sites(module)
    assert_complete(module, plan)
    assert [site.name for site in plan.sites] == ["0.weight", "1.weight"]
    assert plan.skipped["2.weight"] == "tied: gated as 0.weight"
    assert plan.skipped["2.bias"] == "bias"
    excluded = find_sites(module, Targets(exclude=("2.weight",)))
    assert [site.name for site in excluded.sites] == ["1.weight"]
    assert excluded.skipped["0.weight"] == "tied: the same tensor as 2.weight"


def test_whatever_shares_a_weight_is_told() -> None:
    plan = find_sites(PICOS["shared"]().module)
    assert {site.name: site.tied for site in plan.sites} == {
        "body.weight": ("again.weight", "mirror.weight"),
        "normed.weight": ("normed_again.weight",),
        "head.weight": (),
    }


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_the_gain_of_an_older_weight_norm_is_no_site() -> None:
    module = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 3)))
    plan = find_sites(module)
    assert [site.name for site in plan.sites] == ["0.weight_v"]
    assert plan.skipped["0.weight_g"] == "gain of the output channels"


def test_a_gate_beside_experts_is_a_router_and_any_other_gate_is_none() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 2)
            self.mixture = Mixture()

    plan = find_sites(Gated())
    experts = [f"mixture.experts.{i}.weight" for i in range(2)]
    assert [site.name for site in plan.sites] == ["gate.weight", *experts]
    assert plan.skipped["mixture.gate.weight"] == "router of experts"


def test_whatever_chooses_among_experts_is_a_router_but_no_expert_is() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(4, 2)
            self.experts = nn.ModuleList([nn.Linear(4, 4)])

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
            self.router = Router()
            self.experts = nn.ModuleList([nn.Linear(4, 4)])

    plan = find_sites(Mixture())
    assert [s.name for s in plan.sites] == ["router.experts.0.weight", "experts.0.weight"]
    chosen = {name for name, why in plan.skipped.items() if why == "router of experts"}
    assert chosen == {"gate.0.weight", "gate.1.weight", "router.classifier.weight"}


def test_bare_parameters_are_told_apart_by_name_and_class() -> None:
    class AxialPositionEmbeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([torch.zeros(4, 1, 3), torch.zeros(1, 5, 3)])

    class QuantEmbedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(9, 4))

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = AxialPositionEmbeddings()
            self.words = QuantEmbedding()
            self.D = nn.Parameter(torch.zeros(2, 4))
            self.compress_ape = nn.Parameter(torch.zeros(3, 4))
            self.prompts_visual_projection = nn.Parameter(torch.zeros(3, 4))
            self.factors = nn.ParameterList([torch.zeros(3, 2), torch.zeros(2, 3)])

    plan = find_sites(Mixer())
    assert [s.name for s in plan.sites] == [
        "prompts_visual_projection", "factors.0", "factors.1"
    ]  # fmt: skip
    assert plan.skipped["words.weight"].startswith("embedding")


def test_output_embeddings_are_a_head_where_there_is_no_base_model() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(4, 4)
            self.lm_head = nn.Linear(4, 9)

        @property
        def base_model(self) -> nn.Module:
            return self

        def get_output_embeddings(self) -> nn.Module:
            return self.lm_head

    found = find_sites(Whole(), gate_head=False)
    assert [site.name for site in found.sites] == ["body.weight"]
    assert len(find_sites(Whole()).sites) == 2


def test_a_column_is_a_weight_where_its_layer_multiplies() -> None:
    assert len(find_sites(nn.Linear(1, 5)).sites) == 1
    assert len(find_sites(nn.LSTM(1, 1)).sites) == 2


def test_the_last_linear_is_the_head_of_a_module_of_the_users_own() -> None:
    module = PICOS["mlp"]().module
    assert find_sites(module, gate_head=False).skipped["3.weight"].startswith("task head")
    body = on_meta(lambda: tf.BertModel(tf.BertConfig(**TEXT)))
    assert not any("head" in why for why in find_sites(body, gate_head=False).skipped.values())


@pytest.mark.parametrize(
    ("targets", "sites"),
    [
        (Targets(include=("0.*",)), ["0.weight"]),
        (Targets(include=("re:^[03]\\.w",)), ["0.weight", "3.weight"]),
        (Targets(exclude=("3.weight",)), ["0.weight"]),
        (Targets(include=("*",), exclude=("re:^0",)), ["3.weight"]),
    ],
)
def test_patterns_choose(targets: Targets, sites: list[str]) -> None:
    plan = find_sites(PICOS["mlp"]().module, targets)
    assert [site.name for site in plan.sites] == sites


def test_include_replaces_the_default_choice_but_not_what_is_possible() -> None:
    module = PICOS["gpt2"]().module
    plan = find_sites(module, Targets(include=("*wpe*", "lm_head*", "*.c_fc.*")), gate_head=False)
    fully_connected = [f"transformer.h.{i}.mlp.c_fc.weight" for i in range(2)]
    embeddings = ["transformer.wte.weight", "transformer.wpe.weight"]
    assert [site.name for site in plan.sites] == [*embeddings, *fully_connected]
    assert plan.skipped["lm_head.weight"] == "tied: gated as transformer.wte.weight"
    assert plan.skipped["transformer.h.0.mlp.c_fc.bias"] == "bias"
    assert plan.skipped["transformer.h.0.mlp.c_proj.weight"] == "not matched by targets.include"
    excluded = find_sites(module, Targets(exclude=("*.mlp.*",))).skipped
    assert excluded["transformer.h.0.mlp.c_proj.weight"] == "matched by targets.exclude"


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (Targets(include=("nothing.*",)), r"the pattern 'nothing\.\*' matches no parameter"),
        (Targets(exclude=("*.WEIGHT",)), r"names look like 0\.weight, 0\.bias"),
        (Targets(include=("re:(",)), r"'re:\(' is not a valid regular expression"),
        (Targets(include=("*.bias",)), r"no parameter is left to gate \(.*0\.bias: bias"),
        (Targets(exclude=("*",)), r"no parameter is left to gate \(0\.weight: matched"),
    ],
)
def test_patterns_that_leave_nothing_are_refused(targets: Targets, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        find_sites(PICOS["mlp"]().module, targets)


def test_a_module_without_parameters_is_refused() -> None:
    with pytest.raises(TargetError, match="the module has none"):
        find_sites(nn.ReLU())


def test_a_parametrized_weight_is_looked_at_without_a_change() -> None:
    module = parametrizations.spectral_norm(nn.Linear(5, 4)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    find_sites(module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(child.training for child in module.modules())
