"""Orders of inputs folded into the layers before: true N:M in the file, the same model, a proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import slt_compress
from slt_compress.artifacts.folding import Fold, fold_, folded_masks
from slt_compress.errors import ArtifactError
from slt_compress.exporting.folded import fold_what_can_be_
from slt_compress.masks import Masks
from slt_compress.searching.recipes import parse_recipe
from slt_compress.storage.files import write_json
from slt_compress.storage.probe import Probe
from slt_compress.tickets import Ticket, read_probe

RECIPE = {"training": {"steps": 2, "batch_size": 4}, "pattern": "2:4", "permute": True}


def searched(source: Any, data: Any, out: Path, **changes: Any) -> Ticket:
    recipe = parse_recipe({**RECIPE, "method": "wanda", **changes})
    return slt_compress.search(source, data, recipe=recipe, out=out)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, checkpoints, data_sets) -> Ticket:
    out = tmp_path_factory.mktemp("folding") / "ticket"
    return searched(checkpoints["llama"], data_sets["prose"], out)


@pytest.fixture(scope="module")
def folded(llama: Ticket) -> Path:
    return slt_compress.export(llama.path, fold=True, out=llama.path.parent / "folded").path


def neighbours(weight: Tensor) -> Tensor:
    moved = weight.movedim(1, -1)
    return (moved.reshape(*moved.shape[:-1], -1, 4) != 0).sum(-1)


def test_the_library_reads_a_model_that_is_the_same_and_n_of_m(llama: Ticket, folded: Path) -> None:
    folds = json.loads((folded / "slt.json").read_text())["folds"]
    assert set(folds) == {name for name in llama.orders if "down_proj" in name}
    model = AutoModelForCausalLM.from_pretrained(folded).eval()
    masked, probe = slt_compress.load(llama.path), read_probe(llama)
    assert probe is not None
    with torch.no_grad():
        logits = model(**probe.inputs).logits
    for name, fold in folds.items():
        weight = model.get_parameter(name)
        assert (neighbours(weight) <= 2).all()
        own = masked.get_parameter(name)
        assert (neighbours(own) > 2).any()
        assert torch.equal(weight, own[:, torch.tensor(fold["order"])])
    torch.testing.assert_close(logits.reshape(probe.logits.shape), probe.logits)


def test_load_puts_all_weights_back_and_verify_proves_it(llama: Ticket, folded: Path) -> None:
    loaded, masked = slt_compress.load(folded), slt_compress.load(llama.path)
    for name, value in masked.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    checks = {c.name: c for c in slt_compress.verify(folded, in_process=True).checks}
    assert all(check.ok for check in checks.values()), checks
    assert "bit-identical" in checks["logits"].detail
    assert "folded into the layers before" in checks["folds"].detail
    (line,) = [w for w in slt_compress.report(folded).warnings if "folded" in w]
    assert line.startswith(f"2 of {len(llama.orders)} orders")


def test_chains_are_folded(tmp_path: Path) -> None:
    ticket = searched("lenet-300-100", None, tmp_path / "t", dataset="digits", init="random")
    out = slt_compress.export(ticket.path, fold=True, out=tmp_path / "folded").path
    assert slt_compress.verify(out, in_process=True).ok
    folds = json.loads((out / "slt.json").read_text())["folds"]
    assert folds
    stored = load_file(out / "model.safetensors")
    for name in folds:
        assert (neighbours(stored[name]) <= 2).all()


def test_a_batchnorm_between_goes_along(checkpoints, data_sets, tmp_path: Path) -> None:
    ticket = searched("resnet20-cifar", None, tmp_path / "t", dataset="digits", init="random")
    out = slt_compress.export(ticket.path, fold=True, out=tmp_path / "folded").path
    folds = json.loads((out / "slt.json").read_text())["folds"]
    inner = [name for name in ticket.orders if name.endswith("conv2.weight")]
    assert inner
    assert set(folds) == set(inner)
    assert all(any("bn1.running_var" in giver for giver in folds[name]["givers"]) for name in inner)
    assert slt_compress.verify(out, in_process=True).ok


def changed(folded: Path, out: Path, change: Any) -> Path:
    import shutil

    shutil.copytree(folded, out)
    manifest = json.loads((out / "slt.json").read_text())
    change(manifest["folds"], next(iter(manifest["folds"])))
    write_json(out / "slt.json", manifest)
    return out


def swap(folds: Any, name: str) -> None:
    order = folds[name]["order"]
    order[0], order[1] = order[1], order[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folds, name: folds[name].update(order=[0, 0]), "the fold of"),
        (lambda folds, name: folds[name].update(dim=-1), "the fold of"),
        (lambda folds, name: folds[name].update(dim=5), "does not fit"),
        (lambda folds, name: folds[name].update(givers="all"), "the fold of"),
        (lambda folds, name: folds[name].update(givers=["nothing.weight"]), "does not fit"),
        (lambda folds, name: folds[name].update(givers=2 * folds[name]["givers"]), "two folds"),
        (lambda folds, name: folds.update({name: None}), "the fold of"),
        (swap, None),
        (lambda folds, name: folds[name].update(givers=[]), None),
        (lambda folds, name: folds.pop(name), None),
    ],
    ids=["order", "dim", "far", "givers", "unknown", "twice", "null", "swap", "alone", "lost"],
)
def test_a_false_fold_does_not_pass(
    change: Any, message: str | None, folded: Path, tmp_path: Path
) -> None:
    other = changed(folded, tmp_path / "other", change)
    verification = slt_compress.verify(other, in_process=True)
    assert not verification.ok
    if message is not None:
        with pytest.raises(ArtifactError, match=message):
            slt_compress.load(other)


def test_what_cannot_be_folded_is_said(llama: Ticket, checkpoints, data_sets, tmp_path) -> None:
    with pytest.raises(ArtifactError, match="--fold goes with the format dense"):
        slt_compress.export(llama.path, fold=True, format="nm", out=tmp_path / "a")
    with pytest.raises(ArtifactError, match="neither shrink nor values_dtype"):
        slt_compress.export(llama.path, fold=True, shrink=True, out=tmp_path / "a")
    plain = searched(checkpoints["llama"], data_sets["prose"], tmp_path / "plain", permute=False)
    with pytest.raises(ArtifactError, match="no orders of inputs"):
        slt_compress.export(plain.path, fold=True, out=tmp_path / "a")
    alone = searched(
        checkpoints["llama"], data_sets["prose"], tmp_path / "alone",
        targets={"include": ["*q_proj*"]},
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="none of the"):
        slt_compress.export(alone.path, fold=True, out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


class Read(nn.Module):
    """A hidden layer that is read by a second layer, and once more beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, value: Tensor) -> Tensor:
        hidden = self.fc1(value).relu()
        return self.fc2(hidden) + hidden


def test_a_layer_that_is_read_elsewhere_too_is_left_alone() -> None:
    torch.manual_seed(0)
    module, value = Read().eval(), torch.randn(5, 6)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        probe = Probe(inputs={"value": value}, logits=module(value))
    folds = fold_what_can_be_(
        module, {"fc2.weight": (7, 6, 5, 4, 3, 2, 1, 0)}, lambda m, given: m(**given), probe
    )
    assert folds == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_masks_and_flips_go_along_and_all_comes_back() -> None:
    module, order = Read(), (3, 1, 0, 2, 7, 6, 5, 4)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    folds = {"fc2.weight": Fold(order=order, dim=1, givers=("fc1.weight", "fc1.bias"))}
    masks = Masks(
        {name: module.get_parameter(name) > 0 for name in ("fc1.weight", "fc2.weight")},
        {"fc1.weight": module.get_parameter("fc1.weight") > 0.1},
    )
    fold_(module, folds)
    turned = folded_masks(masks, folds)
    for name, mask in turned.items():
        assert torch.equal(mask, module.get_parameter(name) > 0)
    assert torch.equal(turned.flips["fc1.weight"], module.fc1.weight > 0.1)
    fold_(module, folds, back=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_batchnorm_in_a_chain_goes_along() -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    norm = chain[1]
    assert isinstance(norm, nn.BatchNorm1d)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.uniform_(0.5, 2.0)
    value = torch.randn(5, 6)
    with torch.no_grad():
        probe = Probe(inputs={"input": value}, logits=chain.eval()(value))
    order = (7, 6, 5, 4, 3, 2, 1, 0)
    folds = fold_what_can_be_(chain, {"3.weight": order}, lambda m, given: m(**given), probe)
    names = ("weight", "bias", "running_mean", "running_var")
    assert set(folds["3.weight"].givers) == {
        *(f"1.{name}" for name in names), "0.weight", "0.bias",
    }  # fmt: skip
