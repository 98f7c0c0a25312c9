"""Heads of attentions, and the weights that removed units leave without effect."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers
from models import attention, gpt2, mlp
from torch import nn

from slt_compress.masks import Masks
from slt_compress.sites.dead_weights import dead_weights
from slt_compress.sites.fitting import lay_out
from slt_compress.sites.layouts import Blocks
from slt_compress.sites.patterns import parse_pattern
from slt_compress.sites.sites import SitePlan, find_sites

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}


def vit() -> nn.Module:
    config = transformers.ViTConfig(**SMALL, intermediate_size=32, image_size=16, patch_size=8)
    return transformers.ViTForImageClassification(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        **SMALL, vocab_size=20, intermediate_size=24, num_key_value_heads=2
    )
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(**SMALL, vocab_size=32, intermediate_size=32)
    )


def timm_vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=3)


def planned(module: nn.Module, text: str) -> SitePlan:
    return lay_out(find_sites(module), parse_pattern(text), module)


@pytest.mark.parametrize(
    ("make", "name", "heads", "width"),
    [
        (vit, "vit.layers.0.attention.o_proj.weight", 4, 4),
        (bert, "encoder.layer.0.attention.output.dense.weight", 4, 4),
        (llama, "model.layers.0.self_attn.o_proj.weight", 4, 4),
        (timm_vit, "blocks.0.attn.proj.weight", 3, 8),
        (lambda: attention().module, "attention.out_proj.weight", 2, 4),
    ],
)
def test_heads_are_columns_of_the_output_projection(
    make: object, name: str, heads: int, width: int
) -> None:
    plan = planned(make(), "head")  # type: ignore[operator]
    (site,) = plan.sites
    assert site.name == name
    assert site.units == heads
    assert site.layout == Blocks(weight=site.shape, matrix=site.shape, block=(site.shape[0], width))  # type: ignore[arg-type]
    assert any("not the output projection" in reason for reason in plan.skipped.values())


def test_heads_of_a_transposed_projection_are_rows() -> None:
    plan = planned(gpt2().module, "head")
    assert [site.name for site in plan.sites] == [
        f"transformer.h.{i}.attn.c_proj.weight" for i in (0, 1)
    ]
    assert plan.sites[0].layout == Blocks(weight=(8, 8), matrix=(8, 8), block=(4, 8))


class HeadlessAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out_proj = nn.Linear(8, 8)


def test_an_attention_whose_heads_are_not_known_is_skipped_with_the_reason() -> None:
    module = nn.ModuleDict({"a": HeadlessAttention(), "b": nn.MultiheadAttention(8, 2)})
    plan = planned(module, "head")
    assert plan.skipped["a.out_proj.weight"] == "head: the number of heads of a is not known"
    assert [site.name for site in plan.sites] == ["b.out_proj.weight"]
    module["a"].num_heads = 3
    assert "not a multiple of 3 heads" in planned(module, "head").skipped["a.out_proj.weight"]


def masked(plan: SitePlan, removed: dict[str, list[int]]) -> Masks:
    """Masks with these units of each site removed, and all else kept."""
    found = {}
    for site in plan.sites:
        units = torch.ones(site.layout.grid(site.shape), dtype=torch.bool)
        units.view(-1)[removed.get(site.name, [])] = False
        found[site.name] = site.layout.expand(units)
    return Masks(found)


def test_the_columns_that_read_a_removed_neuron_are_silenced() -> None:
    plan = planned(mlp().module, "neuron")
    found, unknown = dead_weights(
        mlp().module, plan, masked(plan, {"0.weight": [1, 5]}), heads=False
    )  # fmt: skip
    assert found == {"3.weight": 2 * 3}
    assert not unknown
    assert dead_weights(mlp().module, plan, masked(plan, {}), heads=False) == ({}, [])


def test_a_reader_that_is_gated_counts_its_kept_weights_once() -> None:
    module = llama()
    plan = planned(module, "neuron")
    gate, up, down = (f"model.layers.0.mlp.{n}_proj.weight" for n in ("gate", "up", "down"))
    masks = masked(plan, {gate: [0, 1], up: [1, 2], down: [7]})
    found, unknown = dead_weights(module, plan, masks, heads=False)
    assert found == {down: 3 * 15}
    assert unknown == [down]


def test_channels_silence_the_next_convolution_and_the_pixels_that_they_are_flattened_to() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(),
        nn.Linear(6 * 9, 2),
    )  # fmt: skip
    plan = planned(module, "channel")
    masks = masked(plan, {"0.weight": [3], "3.weight": [0, 5]})
    found, _ = dead_weights(module, plan, masks, heads=False)
    assert found == {"3.weight": 4 * 9, "5.weight": 2 * 2 * 9}
    inputs = torch.randn(2, 1, 7, 7)
    module.eval()
    with torch.no_grad():
        for name in ("0", "3"):
            module.get_submodule(name).weight.mul_(masks[f"{name}.weight"])
            module.get_submodule(name).bias.zero_()
        before = module(inputs)
        module[3].weight[:, 3] = 7.0
        module[5].weight.view(2, 6, 9)[:, [0, 5]] = 7.0
        assert torch.equal(module(inputs), before)


def test_a_removed_head_silences_what_makes_it_and_a_shared_key_with_its_last_head() -> None:
    module = llama()
    plan = planned(module, "head")
    name = "model.layers.0.self_attn.{}_proj.weight"
    found, unknown = dead_weights(
        module, plan, masked(plan, {name.format("o"): [0, 2, 3]}), heads=True
    )
    assert found == {name.format("q"): 3 * 4 * 16, name.format("k"): 64, name.format("v"): 64}
    assert not unknown
    inputs = {"input_ids": torch.randint(0, 20, (2, 5))}
    attn = module.get_submodule("model.layers.0.self_attn")
    with torch.no_grad():
        attn.o_proj.weight.mul_(masked(plan, {name.format("o"): [0, 2, 3]})[name.format("o")])
        before = module(**inputs).logits
        for part, rows in (("q", [*range(4), *range(8, 16)]), ("k", range(4, 8))):
            attn.get_submodule(f"{part}_proj").weight[list(rows)] = 0.3
        attn.v_proj.weight[4:] = 0.3
        assert torch.equal(module(**inputs).logits, before)


@pytest.mark.parametrize(
    ("make", "name", "feeder", "count"),
    [
        (timm_vit, "blocks.0.attn.proj.weight", "blocks.0.attn.qkv.weight", 3 * 8 * 24),
        (lambda: gpt2().module, "transformer.h.1.attn.c_proj.weight",
         "transformer.h.1.attn.c_attn.weight", 3 * 4 * 8),
        (lambda: attention().module, "attention.out_proj.weight", "attention.in_proj_weight",
         3 * 4 * 8),
    ],
)  # fmt: skip
def test_one_matrix_may_make_queries_keys_and_values(
    make: object, name: str, feeder: str, count: int
) -> None:
    module = make()  # type: ignore[operator]
    plan = planned(module, "head")
    found, _ = dead_weights(module, plan, masked(plan, {name: [1]}), heads=True)
    assert found == {feeder: count}
