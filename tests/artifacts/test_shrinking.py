"""Shrinking: what is cut, what stays and why; and the outputs are those of the masked model."""

from __future__ import annotations

import copy

import models
import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from slt_compress.artifacts.shrinking import parse_shrunk, prove, resize_, shrink, shrunken
from slt_compress.errors import ArtifactError


def drop_(module: nn.Module, **dropped: tuple[list[int], list[int]]) -> dict[str, Tensor]:
    """Mask rows and columns of weights in place; `a__b` is the weight of `a.b`."""
    masks = {}
    for path, (rows, columns) in dropped.items():
        weight = module.get_submodule(path.replace("__", ".")).weight
        mask = torch.ones(weight.shape, dtype=torch.bool)
        mask[rows] = False
        mask[:, columns] = False
        masks[f"{path.replace('__', '.')}.weight"] = mask
        with torch.no_grad():
            weight.masked_fill_(~mask, 0)
    return masks


def on(*inputs):
    """Call a module on the same inputs every time."""
    return lambda module: module(*inputs)


def same(module, smaller, *inputs):
    with torch.no_grad():
        wanted, found = module(*inputs), smaller(*inputs)
    return float((wanted - found).abs().max()) <= 1e-4 * float(wanted.abs().max())


class Mlp(nn.Module):
    """Two hidden layers with an activation that is not 0 at 0."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 7, bias=bias)
        self.last = nn.Linear(7, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.first(x.flatten(1)))
        return self.last(functional.gelu(self.second(hidden)))


def test_constants_move_into_the_bias_of_the_next_layer():
    torch.manual_seed(0)
    module = Mlp().eval()
    masks = drop_(module, first=([1, 4], []), second=([0, 2, 3], []))
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(5, 2, 3)
    made = shrink(module, on(x), masks)
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert made.module.first.weight.shape == (6, 6)
    assert made.module.second.weight.shape == (4, 6)
    assert (made.module.last.in_features, made.module.second.out_features) == (4, 4)
    assert made.shrunk.folds["second.bias"].columns == (1, 4)
    assert made.shrunk.folds["last.bias"].columns == (0, 2, 3)
    assert made.difference < 1e-6
    assert same(module, made.module, torch.randn(50, 6))
    note = made.layers["second.weight"]
    assert (note.before, note.after, note.left, note.reason) == ((7, 8), (4, 6), 0, None)


def test_a_constant_without_a_bias_to_move_into_stays():
    torch.manual_seed(0)
    module = Mlp(bias=False).eval()
    masks = drop_(module, first=([1, 4], []), second=([0], []))
    made = shrink(module, on(torch.randn(5, 6)), masks)
    assert made.module.first.weight.shape == (8, 6)
    assert made.layers["first.weight"].left == 2
    assert "no bias" in made.layers["first.weight"].reason
    # gelu(0) is 0: nothing has to move
    assert made.module.second.weight.shape == (6, 8)
    assert not made.shrunk.folds


def test_units_that_nothing_reads_go_as_well():
    torch.manual_seed(0)
    module = Mlp().eval()
    masks = drop_(module, second=([5], [2, 6]))
    made = shrink(module, on(torch.randn(5, 6)), masks)
    assert made.module.first.weight.shape == (6, 6)
    assert made.module.second.weight.shape == (6, 6)
    assert same(module, made.module, torch.randn(9, 6))


def test_a_dead_layer_keeps_one_unit():
    module = Mlp().eval()
    masks = drop_(module, first=(list(range(8)), []))
    made = shrink(module, on(torch.randn(2, 6)), masks)
    assert made.module.first.weight.shape == (1, 6)
    assert made.layers["first.weight"].reason == "a layer keeps one unit"
    assert same(module, made.module, torch.randn(9, 6))


class Convs(nn.Module):
    """Convolution, norm, activation, pooling, a depthwise convolution, and a flattened head."""

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.second = nn.Conv2d(6, 5, 3, padding=padding)
        self.head = nn.Linear(5 * (1 + padding) ** 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu_(self.norm(self.first(x))), 2)
        x = functional.avg_pool2d(torch.relu(self.second(self.depth(x))), 2)
        return self.head(x.flatten(1))


def convs(padding: int = 1) -> Convs:
    torch.manual_seed(0)
    module = Convs(padding)
    for tensor in (module.norm.running_mean, module.norm.bias, module.norm.weight):
        nn.init.uniform_(tensor)
    nn.init.zeros_(module.depth.bias)
    return module.eval()


def test_channels_go_through_norms_pools_and_flattening():
    module, x = convs(), torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        module.norm.bias[[0, 3]] = -2.0  # below 0 whatever the statistics: relu gives 0
        module.second.bias[[1, 4]] = torch.tensor([0.5, -0.5])  # what their empty rows put out
    masks = drop_(module, first=([0, 3], []), second=([1, 4], []))
    made = shrink(module, on(x), masks)
    assert made.module.first.weight.shape == (4, 3, 3, 3)
    assert made.module.norm.running_var.shape == (4,)
    assert made.module.norm.num_features == 4
    depth = made.module.depth
    assert (depth.groups, depth.in_channels, depth.weight.shape) == (4, 4, (4, 1, 3, 3))
    assert made.module.second.weight.shape == (3, 4, 3, 3)
    assert made.module.head.weight.shape == (4, 12)
    assert same(module, made.module, torch.randn(4, 3, 8, 8))
    assert made.shrunk.folds["head.bias"].columns == (4, 5, 6, 7)
    assert made.shrunk.folds["head.bias"].constants == (0.5,) * 4


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_moves_into_a_convolution_only_without_padding(padding):
    module = convs(padding)
    with torch.no_grad():
        module.norm.bias[2] = 5.0
        module.depth.bias[2] = 1.0
    masks = drop_(module, depth=([2], []))
    x = torch.randn(4, 3, 8, 8)
    if padding:
        with pytest.raises(ArtifactError, match=r"padding around its inputs"):
            shrink(module, on(x), masks)
        return
    made = shrink(module, on(x), masks)
    assert made.module.second.weight.shape == (5, 5, 3, 3)
    assert made.module.first.weight.shape == (5, 3, 3, 3)
    assert same(module, made.module, torch.randn(4, 3, 8, 8))


class Gated(nn.Module):
    """A gated MLP in a residual stream with a norm, and one branch that is added to another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.gate = nn.Linear(6, 8, bias=False)
        self.up = nn.Linear(6, 8)
        self.down = nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        hidden = self.norm(x)
        x = x + self.down(functional.silu(self.gate(hidden)) * self.up(hidden))
        return self.head(self.norm(x))


def test_a_product_is_0_where_one_factor_is_and_a_residual_stream_stays():
    torch.manual_seed(0)
    module, x = Gated().eval(), torch.randn(5, 4)
    masks = drop_(module, gate=([0, 5], []), up=([3], []), down=([2], []), stem=([2], []))
    made = shrink(module, on(x), masks)
    # row 3 of `up` leaves its bias, times something that is not known: only 0 and 5 go
    assert made.module.gate.weight.shape == (6, 6)
    assert made.module.up.weight.shape == (6, 6)
    assert made.module.down.weight.shape == (6, 6)
    assert "layer_norm" in made.layers["down.weight"].reason
    assert "not constant" in made.layers["up.weight"].reason
    assert same(module, made.module, torch.randn(5, 4))


def test_a_relu_gate_that_is_shut_on_the_inputs_is_not_taken_for_a_constant():
    module = Gated().eval()
    with torch.no_grad():
        module.gate.weight.fill_(-1e-6)
    masks = drop_(module, up=([3], []))
    with pytest.raises(ArtifactError, match="not constant"):
        shrink(module, on(torch.randn(5, 4)), masks)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(torch.relu(self.first(x)))))


def test_a_layer_that_is_called_twice_stays():
    module = Twice().eval()
    masks = drop_(module, first=([1], []))
    with pytest.raises(ArtifactError, match=r"shares first\.\w+ with another place"):
        shrink(module, on(torch.randn(3, 4)), masks)


def test_nothing_to_shrink_is_one_sentence():
    module = Mlp().eval()
    masks = {"first.weight": torch.ones(8, 6, dtype=torch.bool)}
    with pytest.raises(ArtifactError, match="search with a structured pattern") as caught:
        shrink(module, on(torch.randn(2, 6)), masks)
    assert "\n" not in str(caught.value)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x)) if x.sum().item() > 0 else self.last(x)


def test_a_model_that_cannot_be_traced_is_refused():
    module = Branching().eval()
    masks = drop_(module, first=([1], []))
    with pytest.raises(ArtifactError, match=r"torch\.export cannot trace it") as caught:
        shrink(module, on(torch.ones(3, 4)), masks)
    assert "\n" not in str(caught.value)


class Fixed(nn.Module):
    """A module whose code holds a width that no attribute corrects."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).view(len(x), 6))


def test_a_shrunk_model_that_does_not_run_is_refused():
    module = Fixed().eval()
    masks = drop_(module, first=([1], []))
    with pytest.raises(ArtifactError, match="does not run"):
        shrink(module, on(torch.randn(3, 4)), masks)


def heads_(module: nn.Module, name: str, width: int, dim: int) -> dict[str, Tensor]:
    """Mask the first head of an attention: the inputs of its output projection."""
    weight = module.get_parameter(name)
    mask = torch.ones(weight.shape, dtype=torch.bool)
    mask.narrow(dim, 0, width).fill_(False)
    with torch.no_grad():
        weight.masked_fill_(~mask, 0)
    return {name: mask}


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = {"vocab_size": 20, "intermediate_size": 24, "bos_token_id": 0, "eos_token_id": 0}


def attentions():
    torch.manual_seed(0)
    tokens = torch.randint(1, 20, (2, 7))
    yield (
        "transformer.h.0.attn.c_proj.weight", 4, 0, {"input_ids": tokens},
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                n_embd=16, n_layer=1, n_head=4, vocab_size=20, bos_token_id=0, eos_token_id=0
            )
        ),
    )  # fmt: skip
    for kind in ("sdpa", "eager"):  # two query heads share a key head: both go, or none
        config = transformers.LlamaConfig(**SMALL, **TEXT, num_key_value_heads=2)
        config._attn_implementation = kind
        yield (
            "model.layers.0.self_attn.o_proj.weight", 8, 1,
            {"input_ids": tokens, "use_cache": False}, transformers.LlamaForCausalLM(config),
        )  # fmt: skip
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3)
    yield "blocks.0.attn.proj.weight", 64, 1, {"x": torch.randn(2, 3, 32, 32)}, model


@pytest.mark.parametrize("index", range(4), ids=["gpt2", "llama", "llama-eager", "timm"])
def test_heads_of_attentions_go_whole(index):
    name, width, dim, inputs, model = list(attentions())[index]
    model.eval()
    masks = heads_(model, name, width, dim)
    read = models.Pico(module=model, inputs=inputs).read
    made = shrink(model, lambda m: read(m(**inputs)), masks)
    assert made.layers[name].left == 0
    assert made.layers[name].after[dim] == made.layers[name].before[dim] - width
    assert made.difference < 1e-5


def test_the_attention_of_torch_itself_stays_whole():
    pico = models.attention()
    masks = heads_(pico.module, "attention.out_proj.weight", 4, 1)
    with pytest.raises(ArtifactError, match="number of heads"):
        shrink(pico.module, lambda m: m(**pico.inputs), masks)


class Residual(nn.Module):
    """Two convolutions whose outputs are added, with a norm behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.left(x)) + self.right(x))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_what_is_added_goes_where_everything_that_is_added_is_constant():
    torch.manual_seed(0)
    module, x = Residual().eval(), torch.randn(2, 3, 5, 5)
    masks = drop_(module, left=([1, 2, 4], []), right=([2, 4], []))
    made = shrink(module, on(x), masks)
    assert made.module.head.weight.shape == (2, 4)
    assert made.module.norm.weight.shape == (4,)
    assert made.module.left.weight.shape == (4, 3, 3, 3)
    assert made.layers["left.weight"].left == 1
    assert "not constant" in made.layers["left.weight"].reason
    assert same(module, made.module, torch.randn(2, 3, 5, 5))


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_any_structured_mask_gives_the_masked_outputs(data):
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    module = data.draw(st.sampled_from([Mlp, Gated, Convs]))().eval()
    masks = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            rows = data.draw(st.sets(st.integers(0, len(layer.weight) - 1)), label=name)
            columns = data.draw(st.sets(st.integers(0, layer.weight.shape[1] - 1)), label=name)
            masks |= drop_(module, **{name: (sorted(rows), sorted(columns))})
    size = {Mlp: (6,), Gated: (4,), Convs: (3, 8, 8)}[type(module)]
    x = torch.randn(3, *size)
    refused = None
    try:
        made = shrink(module, on(x), masks)
    except ArtifactError as error:
        refused = str(error)
    if refused is not None:
        assert "nothing can be shrunk" in refused
        return
    fresh = 3 * torch.randn(20, *size)
    with torch.no_grad():
        wanted, found = module(fresh), made.module(fresh)
    assert torch.allclose(found, wanted, atol=1e-4 * max(1e-3, float(wanted.abs().max())))
    # what is written down is enough to make the same model again
    again = parse_shrunk(made.shrunk.to_dict())
    assert again == made.shrunk
    other = shrunken(module, again)
    assert all(
        torch.equal(tensor, other.state_dict()[name])
        for name, tensor in made.module.state_dict().items()
    )


def checked(small, module, shrunk, masks, x):
    return {name: ok for name, ok, _ in prove(small, module, shrunk, masks, on(x))}


def test_the_proof_fails_for_every_change():
    torch.manual_seed(0)
    module, x = Mlp().eval(), torch.randn(5, 6)
    masks = drop_(module, first=([1, 4], []), second=([0, 2, 3], []))
    made = shrink(module, on(x), masks)
    fine = {"weights": True, "ungated": True, "folds": True, "cut": True}
    assert checked(made.module, module, made.shrunk, masks, x) == fine
    for name, check in (("second.weight", "weights"), ("first.bias", "ungated"),
                        ("last.bias", "folds")):  # fmt: skip
        other = copy.deepcopy(made.module)
        with torch.no_grad():
            other.get_parameter(name).view(-1)[0] += 1e-3
        assert checked(other, module, made.shrunk, masks, x) == fine | {check: False}
    # a row that the masks keep was cut as well
    content = made.shrunk.to_dict()
    for name, dim in (("first.weight", "0"), ("first.bias", "0"), ("second.weight", "1")):
        content["tensors"][name]["kept"][dim].pop()
    greedy = parse_shrunk(content)
    found = checked(shrunken(module, greedy), module, greedy, masks, x)
    assert found == fine | {"cut": False}


DAMAGE = {
    "no tensors": lambda s: s.pop("tensors"),
    "text": lambda s: s.update(tensors="x"),
    "no shape": lambda s: s["tensors"]["first.weight"].pop("shape"),
    "an empty shape": lambda s: s["tensors"]["first.weight"].update(shape=[0, 6]),
    "a dimension that is none": lambda s: s["tensors"]["first.weight"]["kept"].update({"2": [0]}),
    "positions outside": lambda s: s["tensors"]["first.weight"]["kept"].update({"0": [0, 8]}),
    "a negative position": lambda s: s["tensors"]["first.weight"]["kept"].update({"0": [-1]}),
    "positions that do not rise": lambda s: s["tensors"]["first.weight"]["kept"].update(
        {"0": [1, 1]}
    ),
    "no positions": lambda s: s["tensors"]["first.weight"]["kept"].update({"0": []}),
    "a position that is text": lambda s: s["tensors"]["first.weight"]["kept"].update({"0": ["1"]}),
    "a fold without constants": lambda s: s["folds"]["second.bias"].update(constants=[]),
    "a fold of text": lambda s: s["folds"]["second.bias"].update(constants=["1", "2"]),
    "a fold along nothing": lambda s: s["folds"]["second.bias"].update(dim=2),
    "an attribute of any name": lambda s: s.update(attributes={"first": {"forward": [1, 1]}}),
    "an attribute that grows": lambda s: s.update(attributes={"first": {"num_heads": [1, 2]}}),
    "an attribute that is text": lambda s: s.update(attributes={"first": {"num_heads": "12"}}),
}


@pytest.fixture(scope="module")
def record():
    module = Mlp().eval()
    masks = drop_(module, first=([1, 4], []))
    return shrink(module, on(torch.randn(2, 6)), masks).shrunk


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_record_that_lies_is_refused(record, damage):
    content = record.to_dict()
    assert parse_shrunk(content) == record
    DAMAGE[damage](content)
    with pytest.raises(ArtifactError) as caught:
        parse_shrunk(content)
    assert "\n" not in str(caught.value)


def test_a_module_that_does_not_fit_is_not_resized(record):
    module, shrunk = Mlp().eval(), record
    for other in (Gated(), nn.Sequential(nn.Linear(6, 8))):
        with pytest.raises(ArtifactError, match=r"the model has no first"):
            resize_(other, shrunk)
    smaller = shrunken(module, shrunk)
    with pytest.raises(ArtifactError, match=r"the model has no first\.bias of \(8,\)"):
        resize_(smaller, shrunk)
