"""Checkpoints in half precision read images and sounds, with every method and precision."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import slt_compress
from slt_compress import Budget, Training
from slt_compress.checkpoints.casting import fitted
from slt_compress.gates import METHODS
from slt_compress.searching.recipes import parse_recipe
from slt_compress.sites.sites import find_sites

LABELS = {
    "id2label": dict(enumerate(pico.CLASSES)),
    "label2id": {name: index for index, name in enumerate(pico.CLASSES)},
}
EIGHT_BITS = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2")


def save_resnet(folder: Path) -> Path:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", **LABELS
    )
    pico._save(transformers.ResNetForImageClassification, config, folder)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_convnext(folder: Path) -> Path:
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], patch_size=2, **LABELS
    )
    pico._save(transformers.ConvNextForImageClassification, config, folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def save_lenet(folder: Path) -> Path:
    folder.mkdir(parents=True)
    module = slt_compress.open_checkpoint("lenet-300-100", init="random").module
    save_file(module.state_dict(), folder / "model.safetensors")
    config = {"architecture": "lenet-300-100", "num_classes": 10}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


MODELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "vit": (pico.save_vit, "images"),
    "resnet": (save_resnet, "images"),
    "convnext": (save_convnext, "images"),
    "timm resnet": (lambda folder: pico.save_timm("test_resnet", folder), "images"),
    "timm vit": (lambda folder: pico.save_timm("test_vit", folder), "images"),
    "wav2vec2": (pico.save_wav2vec2, "sounds"),
    "ast": (pico.save_ast, "sounds"),
    "clip": (pico.save_clip, "captions"),
    "lenet": (save_lenet, "digits"),
}


def cast(folder: Path, dtype: torch.dtype) -> Path:
    """The checkpoint in another dtype, as its library would write it."""
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata)
    config = json.loads((folder / "config.json").read_text())
    if "model_type" in config:
        config["dtype"] = str(dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("data")
    return {
        "images": str(pico.save_pictures(root / "images")),
        "sounds": str(pico.save_sounds(root / "sounds")),
        "captions": str(pico.save_captions(root / "captions")),
        "digits": "digits",
    }


def check(source: Path, spec: str, out: Path, method: str, precision: str) -> list[str]:
    """Search, verify, measure, export and verify again; the notes of the ticket."""
    recipe = parse_recipe({
        "target_sparsity": 0.5, "method": method, "evaluation": {"limit": 4},
        "training": {"steps": 1, "batch_size": 2, "precision": precision, "device": "cpu"},
    })  # fmt: skip
    ticket = slt_compress.search(str(source), spec, recipe=recipe, out=out)
    proof = slt_compress.verify(out, in_process=True)
    assert proof.ok, proof
    assert slt_compress.evaluate(out)["metrics"]
    exported = slt_compress.export(out, format="bitmask", out=out.with_name("exported")).path
    assert slt_compress.verify(exported, in_process=True).ok
    return list(ticket.extra.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_in_half_precision_is_searched(
    name: str, dtype: torch.dtype, data: dict[str, str], tmp_path: Path
) -> None:
    save, spec = MODELS[name]
    source = cast(save(tmp_path / "model"), dtype)
    notes = check(source, data[spec], tmp_path / "ticket", "relaxed", "bf16")
    unused = [note for note in notes if "was not used" in note]
    assert len(unused) == (dtype is torch.float16), notes


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_searches_halves(
    method: str, precision: str, data: dict[str, str], tmp_path: Path
) -> None:
    source = cast(save_resnet(tmp_path / "model"), torch.float16)
    check(source, data["images"], tmp_path / "ticket", method, precision)


class Narrow(nn.Module):
    """A layer that computes with a weight in eight bits or less by widening it first."""

    def __init__(self, dtype: str) -> None:
        super().__init__()
        bits = torch.zeros(6, 6, dtype=torch.uint8).fill_(0x22)
        self.weight = nn.Parameter(bits.view(getattr(torch, dtype)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.detach().view(torch.uint8).float().mean()


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_a_site_in_eight_bits_or_less_is_skipped_with_its_reason(
    dtype: str, tmp_path: Path
) -> None:
    module = nn.Sequential(nn.Linear(6, 6), Narrow(dtype))
    assert find_sites(module).skipped["1.weight"] == f"nothing can be computed in {dtype}"
    ticket = slt_compress.search(
        module, [torch.randn(4, 6)] * 2, loss_fn=lambda m, batch: m(batch).square().mean(),
        budget=Budget(density=0.5), training=Training(steps=1), out=tmp_path / "ticket",
    )  # fmt: skip
    assert list(ticket.masks) == ["0.weight"]
    assert slt_compress.verify(ticket.path, model=module).ok
    out = slt_compress.export(ticket.path, format="auto", model=module, out=tmp_path / "x").path
    assert slt_compress.verify(out, model=module).ok
    slt_compress.Base(module).apply(ticket.path).remove()


class Mixed(nn.Module):
    """Layers in every dtype that can be computed in, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
        self.layers = nn.ModuleList(nn.Linear(6, 6).to(kind) for kind in kinds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x.to(layer.weight.dtype))
        return x.float()


@pytest.mark.parametrize("runtime", ["dense", "sparse"])
def test_a_model_of_mixed_dtypes_is_masked(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Mixed().eval()
    batch = torch.randn(4, 6)
    ticket = slt_compress.search(
        module, [batch] * 2, loss_fn=lambda m, batch: m(batch).square().mean(),
        budget=Budget(density=0.5), training=Training(steps=2), out=tmp_path / "ticket",
    )  # fmt: skip
    assert len(ticket.masks) == 4
    assert slt_compress.verify(ticket.path, model=module).ok
    with torch.no_grad():
        dense = module(batch)
        base = slt_compress.Base(module).apply(ticket.path)
        masked = module(batch)
        assert torch.equal(base.remove().module(batch), dense)
        found = slt_compress.load(ticket.path, model=module, runtime=runtime)(batch)
    assert not torch.equal(masked, dense)
    torch.testing.assert_close(found, masked, rtol=2e-2, atol=2e-3)


def test_inputs_get_the_dtype_of_the_layer_that_reads_them() -> None:
    module = nn.Sequential(nn.LayerNorm(4), nn.Conv1d(3, 4, 1).half(), nn.Linear(4, 4).double())
    batch = {"x": torch.zeros(1), "ids": torch.zeros(1, dtype=torch.int64), "labels": torch.ones(1)}
    given = fitted(module, batch)
    assert [value.dtype for value in given.values()] == [
        torch.float16, torch.int64, torch.float32
    ]  # fmt: skip
    assert fitted(module[2], batch)["x"].dtype is torch.float64
    assert fitted(module[0].bfloat16(), batch)["x"].dtype is torch.bfloat16
    assert fitted(nn.ReLU(), batch)["x"].dtype is torch.float32
