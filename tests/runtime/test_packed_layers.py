"""Layers that let go of their dense weight: it comes back, bit for bit, for whatever reads it."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch
import transformers
from pipelines import RECIPE
from torch import nn
from torch.nn.utils import prune

import slt_compress
from slt_compress.runtime.kernels import can_compile
from slt_compress.runtime.packed import PACKED, Once, PackedParameters, held_of, leaves_alone
from slt_compress.runtime.sparse_layers import Choice, SparseForward, kernels_of

compiled = pytest.mark.skipif(not can_compile(), reason="needs the extra fast")


def thinned(layer: nn.Module) -> nn.Module:
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.masked_fill_(torch.rand(layer.weight.shape, generator=chance) >= 0.2, 0.0)
    return layer.requires_grad_(False)


LAYERS = {
    "linear": (lambda: nn.Linear(300, 70), (5, 300)),
    "no bias": (lambda: nn.Linear(300, 70, bias=False), (5, 300)),
    "conv1d": (lambda: transformers.pytorch_utils.Conv1D(7, 12), (5, 12)),
    "convolution": (lambda: nn.Conv2d(3, 6, 3, padding=1), (2, 3, 9, 8)),
}


def packed(kind: str = "linear", precision: str = "fp32") -> tuple[nn.Module, torch.Tensor]:
    """A packed layer, and its dense weight of before."""
    torch.manual_seed(0)
    layer = thinned(LAYERS[kind][0]())
    weight = layer.weight.detach().clone()
    kernels = kernels_of(layer, precision)
    forward = SparseForward(layer, kernels, Choice({1: next(iter(kernels))}))
    forward.put_on()
    forward.pack(Once())
    return layer, weight


def is_packed(layer: nn.Module) -> bool:
    return held_of(layer._parameters).get("weight") is PACKED


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


KINDS = [pytest.param(kind, marks=compiled if kind == "convolution" else ()) for kind in LAYERS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_layer_computes_and_holds_no_dense_weight(kind):
    layer, weight = packed(kind)
    inputs = torch.randn(LAYERS[kind][1])
    found = layer(inputs)
    assert is_packed(layer)
    with torch.no_grad():
        wanted = type(layer).forward(layer, inputs)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert same_bits(layer.weight, weight)
    assert torch.equal(layer(inputs), found)  # still by the kernel


READS = {
    "weight": lambda layer: layer.weight,
    "state": lambda layer: layer.state_dict()["weight"],
    "parameters": lambda layer: next(iter(layer.parameters())),
    "named": lambda layer: dict(layer.named_parameters())["weight"],
    "values": lambda layer: next(iter(layer._parameters.values())),
    "get": lambda layer: layer._parameters.get("weight"),
    "copy": lambda layer: copy.deepcopy(layer).weight,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)).weight,
    "shallow": lambda layer: layer._parameters.copy()["weight"],
}


@pytest.mark.parametrize("read", list(READS.values()), ids=list(READS))
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_reads_the_weight_gets_all_of_it(kind, read):
    layer, weight = packed(kind)
    assert same_bits(read(layer).detach(), weight)


def test_a_weight_that_is_read_in_inference_mode_is_an_ordinary_one():
    layer, weight = packed()
    with torch.inference_mode():
        assert torch.equal(layer.weight, weight)
    assert not layer.weight.is_inference()
    found = layer(torch.ones(5, 300))
    layer.weight.add_(1)
    assert not torch.allclose(layer(torch.ones(5, 300)), found)


def test_a_kept_weight_of_minus_zero_comes_back():
    layer = thinned(nn.Linear(100, 100))
    layer.weight[3, 4] = -0.0
    before = layer.weight.detach().clone()
    kernels = kernels_of(layer)
    forward = SparseForward(layer, kernels, Choice({1: next(iter(kernels))}))
    forward.pack(Once())
    if can_compile():
        assert same_bits(layer.weight, before)
    layer.weight.copy_(before * torch.where(before == 0, -1.0, 1.0))  # as weights times a mask
    rows = next(iter(kernels_of(layer).values()))
    assert rows.nbytes < 10_000 * 6  # a weight that was removed is none


def test_an_order_of_state_that_is_that_of_before():
    layer, _ = packed()
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


EDITS = {
    "edit": lambda layer: layer.weight.add_(1),
    "load": lambda layer: layer.load_state_dict({n: v + 1 for n, v in layer.state_dict().items()}),
    "set": lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(70, 300))),
    "data": lambda layer: setattr(layer.weight, "data", layer.weight.data + 1),
    "bias": lambda layer: setattr(layer, "bias", None),
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 3),
    "norm": lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
}


@pytest.mark.parametrize("edit", list(EDITS.values()), ids=list(EDITS))
def test_an_edited_layer_is_dense_and_right(edit):
    layer, _ = packed()
    other = thinned(LAYERS["linear"][0]())
    other.load_state_dict(packed()[0].state_dict())
    inputs = torch.randn(5, 300)
    with torch.no_grad():
        edit(layer)
        edit(other)
        assert torch.equal(layer(inputs), other(inputs))


def test_moves_that_change_nothing_rebuild_nothing_and_others_do():
    layer, weight = packed()
    layer.to("cpu").float().eval()
    nn.Sequential(layer).to(torch.float32).cpu()
    assert is_packed(layer)
    assert layer.double().weight.dtype == torch.float64
    assert torch.equal(layer.weight, weight.double())
    assert layer(torch.randn(5, 300).double()).dtype == torch.float64
    half, _ = packed()
    assert half.bfloat16()(torch.randn(5, 300).bfloat16()).dtype == torch.bfloat16
    assert packed()[0].to("meta").weight.is_meta
    assert leaves_alone(lambda tensor: tensor)
    for function in (torch.clone, torch.neg_, lambda t: t.double(), torch.empty_like):
        assert not leaves_alone(function)


def test_gradients_come_by_the_dense_weight():
    layer, weight = packed()
    inputs = torch.randn(5, 300)
    layer.requires_grad_(True)
    layer(inputs).sum().backward()
    assert torch.allclose(layer.weight.grad, inputs.sum(0).expand(70, 300))
    other, _ = packed()
    wants = inputs.clone().requires_grad_()
    other(wants).sum().backward()
    assert torch.allclose(wants.grad, weight.sum(0).expand(5, 300), atol=1e-5)


def test_tracing_is_dense():
    layer, _ = packed()
    inputs = torch.randn(5, 300)
    program = torch.export.export(layer, (inputs,))
    assert torch.allclose(program.module()(inputs), layer(inputs), atol=1e-4)


def test_a_layer_that_is_dense_for_some_counts_keeps_its_weight():
    layer = thinned(nn.Linear(30, 40))
    kernels = kernels_of(layer)
    forward = SparseForward(layer, kernels, Choice({1: None, 64: next(iter(kernels))}))
    forward.put_on()
    forward.pack(Once())
    assert not isinstance(layer._parameters, PackedParameters)


def test_it_is_said_once_for_a_model(caplog):
    layers = [thinned(nn.Linear(30, 40)) for _ in range(2)]
    once = Once()
    for layer in layers:
        kernels = kernels_of(layer)
        SparseForward(layer, kernels, Choice({1: next(iter(kernels))})).pack(once)
    with caplog.at_level(logging.WARNING, "slt_compress"):
        for layer in layers:
            layer.state_dict()
    assert len(caplog.records) == 1
    assert "rebuilt" in caplog.text


@pytest.fixture(scope="module")
def ticket(checkpoints, data_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "bert"
    return slt_compress.search(
        checkpoints["bert"], data_sets["reviews"], recipe=RECIPE, out=folder
    ).path


def test_a_loaded_model_is_packed_and_saves_as_the_dense_one(ticket, tmp_path):
    dense, lean = slt_compress.load(ticket), slt_compress.load(ticket, runtime="sparse")
    packed_layers = [name for name, layer in lean.named_modules() if is_packed(layer)]
    kernels = [name for name, what in lean.slt_runtime.items() if not what.startswith("dense")]
    assert sorted(packed_layers) == kernels != []
    lean.save_pretrained(tmp_path / "lean")
    dense.save_pretrained(tmp_path / "dense")
    files = [tmp_path / kind / "model.safetensors" for kind in ("lean", "dense")]
    assert files[0].read_bytes() == files[1].read_bytes()


@compiled
@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.02), ("int8", 0.1)])
@pytest.mark.parametrize("runtime", ["sparse", "auto"])
def test_lower_precision_says_its_error_and_gives_exact_weights_back(
    ticket, precision, most, runtime, monkeypatch, tmp_path
):
    from slt_compress.runtime import example_runs, kernel_choice

    monkeypatch.setenv("SLT_COMPRESS_CACHE", str(tmp_path))
    for module, name in (
        (kernel_choice, "MARGIN"),
        (kernel_choice, "CLEAR"),
        (example_runs, "SLOWER"),
    ):
        monkeypatch.setattr(module, name, 1000.0)  # so small a layer gains by chance alone
    dense = slt_compress.load(ticket)
    for _ in range(2):  # measured, and remembered
        model = slt_compress.load(ticket, runtime=runtime, dtype=precision)
        assert precision in {what.split(",")[0] for what in model.slt_runtime.values()}
        assert 0.0 <= model.slt_error < most  # 0 where auto is dense for these inputs
        assert runtime == "auto" or model.slt_error > 0.0
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in dense.state_dict().items())
    assert slt_compress.load(ticket, runtime="sparse").slt_error is None


def test_precisions_that_cannot_be_are_refused(ticket):
    with pytest.raises(slt_compress.SltError, match="unknown dtype 'fp8'; known: fp32, bf16, int8"):
        slt_compress.load(ticket, runtime="auto", dtype="fp8")
    with pytest.raises(slt_compress.SltError, match="runtime='auto'"):
        slt_compress.load(ticket, dtype="int8")
    slt_compress.load(ticket, dtype="fp32")
