"""Shrunk artifacts, from a ticket to a proof: every family, and every damage refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import slt_compress
from slt_compress import Budget, Training
from slt_compress.artifacts import (
    Evidence,
    Proof,
    describe_artifact,
    read_artifact,
    read_proof,
    write_shrunk,
)
from slt_compress.artifacts.shrinking import shrink
from slt_compress.checkpoints import Checkpoint, open_checkpoint
from slt_compress.cli import app
from slt_compress.errors import ArtifactError, SltError
from slt_compress.masks import Masks
from slt_compress.runtime.masking import apply_masks_
from slt_compress.searching.recipes import parse_recipe
from slt_compress.sites.sites import find_sites
from slt_compress.storage.files import read_manifest, sha256_tensors
from slt_compress.tickets import read_probe

WEIGHTS = "weights.slt.safetensors"
PROOF = "proof.slt.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A method that drops every third row of every weight."""

    name: ClassVar[str] = "magnitude"  # recipes know no other names than those of the table

    calibrated: ClassVar[bool] = False

    def score(self, weight: Tensor, key: int, inputs: object = None) -> Tensor:
        kept = torch.arange(len(weight)) % 3 != 0
        return kept.double().reshape(-1, *[1] * (weight.dim() - 1)).expand(weight.shape).clone()


def density_of(module: nn.Module, *, gate_head: bool) -> float:
    plan = find_sites(module, gate_head=gate_head)
    kept = sum(site.numel // site.shape[0] * _kept(site.shape[0]) for site in plan.sites)
    return kept / plan.gated


def _kept(rows: int) -> int:
    return rows - (rows + 2) // 3


def structured(source, data, out, **recipe):
    """A ticket whose masks drop every third row."""
    checkpoint = open_checkpoint(source, init=recipe.get("init"))
    budget = Budget(
        density=density_of(checkpoint.module, gate_head=not checkpoint.trained_head), floor=0
    )
    found = slt_compress.search(
        source, data, method=Rows(), budget=budget, out=out,
        recipe=parse_recipe({"training": {"steps": 1, "batch_size": 4}, **recipe}),
    )  # fmt: skip
    for mask in found.masks.values():
        assert not mask[::3].any()
        assert mask.flatten(1).any(1).sum() == _kept(len(mask))
    return found


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    """A structured ticket of a random LeNet, and its shrunk export."""
    root = tmp_path_factory.mktemp("lenet")
    ticket = structured("lenet-300-100", "digits", root / "t", init="random")
    slt_compress.export(ticket.path, shrink=True, out=root / "s")
    return ticket, root / "s"


@pytest.fixture
def copied(lenet, tmp_path):
    """A shrunk folder that can be damaged."""
    for file in lenet[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def logits_match(ticket, shrunk):
    """The shrunk folder gives the logits that the search wrote down."""
    probe = read_probe(ticket.path)
    checkpoint = read_artifact(shrunk).checkpoint
    with torch.no_grad():
        logits = checkpoint.forward(checkpoint.module, probe.inputs)
    return float((logits - probe.logits).abs().max()) <= 1e-4 * float(probe.logits.abs().max())


def test_a_lenet_becomes_smaller(lenet):
    ticket, shrunk = lenet
    module = slt_compress.load(shrunk)
    assert module.fc1.weight.shape == (200, 784)
    assert module.fc2.weight.shape == (66, 200)
    assert module.fc3.weight.shape == (10, 66)  # rows of an output stay, empty or not
    assert logits_match(ticket, shrunk)
    made = describe_artifact(shrunk)
    assert made.format == "shrunk"
    assert made.dense_nbytes == 4 * 266_610
    assert made.nbytes == (shrunk / WEIGHTS).stat().st_size < 0.7 * made.dense_nbytes
    report = json.loads((shrunk / "report.json").read_text())
    smaller = sum(p.numel() for p in module.parameters())
    assert report["shrunk"]["parameters"] == [266_610, smaller]
    assert report["shrunk"]["layers"]["fc1.weight"] == {
        "before": [300, 784], "after": [200, 784], "left": 0, "reason": None,
    }  # fmt: skip
    assert report["shrunk"]["layers"]["fc3.weight"]["left"] == 4
    assert "that of the model" in report["shrunk"]["layers"]["fc3.weight"]["reason"]
    assert report["sizes"]["shrunk"] == 4 * smaller
    assert any("fc1.weight 300 by 784" in line for line in slt_compress.report(shrunk).warnings)


def test_the_same_ticket_gives_the_same_bytes(lenet, tmp_path):
    slt_compress.export(lenet[0].path, shrink=True, out=tmp_path / "again")
    for file in lenet[1].iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes() or (
            file.name == "README.md"  # names its folder
        )


def test_a_shrunk_folder_is_proved(lenet):
    found = slt_compress.verify(lenet[1], in_process=True)
    assert {check.name: check.ok for check in found.checks} == dict.fromkeys(
        (
            "files",
            "count",
            "origin",
            "pattern",
            "flips",
            "weights",
            "ungated",
            "folds",
            "cut",
            "logits",
        ),
        True,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["vit", "llama", "resnet"])
def test_every_family_becomes_smaller(name, checkpoints, data_sets, tmp_path):
    data = data_sets["prose" if name == "llama" else "pictures"]
    ticket = structured(str(checkpoints[name]), data, tmp_path / "t")
    slt_compress.export(ticket.path, shrink=True, out=tmp_path / "s")
    assert logits_match(ticket, tmp_path / "s")
    found = slt_compress.verify(tmp_path / "s", in_process=True)
    assert found.ok, found.checks
    metrics = slt_compress.evaluate(tmp_path / "s")["metrics"]
    hard = ticket.metrics["hard"]
    assert all(abs(metrics[key] - hard[key]) < 1e-3 for key in metrics.keys() & hard.keys())
    report = json.loads((tmp_path / "s" / "report.json").read_text())["shrunk"]
    assert report["parameters"][1] < report["parameters"][0]
    whole = slt_compress.load(ticket.path)
    assert report["parameters"][0] == sum(p.numel() for p in whole.parameters())
    # No library takes the folder for its own.
    if name == "resnet":
        with pytest.raises(RuntimeError):
            timm.create_model(f"local-dir:{tmp_path / 's'}", pretrained=True)
    else:
        with pytest.raises(ArtifactError, match=r"only slt_compress\.load opens it"):
            type(whole).from_pretrained(tmp_path / "s")
    assert isinstance(whole, transformers.PreTrainedModel) == (name != "resnet")


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 9)
        self.last = nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sigmoid(self.first(x)))


def test_a_module_of_ones_own_is_shrunk_on_inputs(tmp_path):
    torch.manual_seed(0)
    module = Own().eval()
    x = torch.randn(6, 4)
    found = slt_compress.search(
        module, [x, x], loss_fn=lambda m, batch: m(batch).square().mean(), method=Rows(),
        budget=Budget(density=density_of(module, gate_head=True), floor=0),
        training=Training(steps=1), out=tmp_path / "t",
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="inputs="):
        slt_compress.export(found.path, shrink=True, model=module, out=tmp_path / "s")
    slt_compress.export(found.path, shrink=True, model=module, inputs=(x,), out=tmp_path / "s")
    smaller = slt_compress.load(tmp_path / "s", model=module)
    assert smaller.first.weight.shape == (6, 4)
    assert module.first.weight.shape == (9, 4)
    whole = slt_compress.load(found.path, model=module)
    assert torch.allclose(smaller(x), whole(x), atol=1e-6)
    assert slt_compress.verify(tmp_path / "s", model=module).ok


def test_flips_are_part_of_the_proof(tmp_path):
    torch.manual_seed(0)
    module = Own().eval()
    mask = torch.ones(9, 4, dtype=torch.bool)
    mask[::3] = False
    masks = Masks({"first.weight": mask}, {"first.weight": mask & (torch.rand(9, 4) < 0.5)})
    apply_masks_(module, masks, {})
    x = torch.randn(5, 4)
    made = shrink(module, lambda m: m(x), masks)
    proof = Proof(shrunk=made.shrunk, masks=masks, buffers={})
    artifact = write_shrunk(
        tmp_path / "s", Evidence(report={}, card="", ticket_hash="0" * 64, provenance={}),
        checkpoint=Checkpoint.of_module(module), module=made.module, proof=proof, dense_nbytes=1,
    )  # fmt: skip
    assert read_artifact(artifact, model=Own()).module.first.weight.shape == (6, 4)
    found = read_proof(artifact)
    assert found.shrunk == made.shrunk
    assert torch.equal(found.masks["first.weight"], mask)
    assert torch.equal(found.masks.flips["first.weight"], masks.flips["first.weight"])


def test_what_cannot_be_shrunk_is_one_sentence(lenet, tmp_path):
    ticket, shrunk = lenet
    with pytest.raises(ArtifactError, match="goes with the format dense, not with sparse-csr"):
        slt_compress.export(ticket.path, format="sparse-csr", shrink=True, out=tmp_path / "x")
    with pytest.raises(SltError, match="already an exported folder"):
        slt_compress.export(shrunk, shrink=True, out=tmp_path / "x")
    recipe = parse_recipe({"training": {"steps": 1, "batch_size": 4}, "init": "random",
                           "method": {"name": "random"}, "target_sparsity": 0.5})  # fmt: skip
    scattered = slt_compress.search("lenet-300-100", "digits", recipe=recipe, out=tmp_path / "t")
    with pytest.raises(ArtifactError, match="search with a structured pattern"):
        slt_compress.export(scattered.path, shrink=True, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("")
    with pytest.raises(ArtifactError, match="cannot export"):
        slt_compress.export(ticket.path, shrink=True, out=tmp_path / "mine")


def test_the_command_says_what_was_shrunk_and_what_was_not(lenet, tmp_path, capsys):
    app.app(
        ["export", str(lenet[0].path), "--shrink", "-o", str(tmp_path / "s"), "--json"],
        standalone_mode=False,
    )
    out, err = capsys.readouterr()
    assert json.loads(out)["format"] == "shrunk"
    assert "shrunk: fc1.weight 300 by 784 → 200 by 784" in err
    assert "not shrunk: 4 empty rows or columns of fc3.weight" in err
    assert "slt_compress.load" in err


def rewrite(path, change):
    """Write the weights again with a changed manifest."""
    manifest = read_manifest(path / WEIGHTS, ArtifactError)
    change(manifest)
    tensors = {name: tensor.clone() for name, tensor in load_file(path / WEIGHTS).items()}
    save_file(tensors, path / WEIGHTS, metadata={"slt": json.dumps(manifest)})


DAMAGE = {
    "no record": lambda m: m.pop("shrunk"),
    "a lost tensor": lambda m: m["shrunk"]["tensors"].pop("fc1.weight"),
    "a further tensor": lambda m: m["shrunk"]["tensors"].update(
        x={"shape": [2], "kept": {"0": [0]}}
    ),
    "another position less": lambda m: m["shrunk"]["tensors"]["fc1.weight"]["kept"]["0"].pop(),
    "another shape": lambda m: m["shrunk"]["tensors"]["fc1.weight"].update(shape=[400, 784]),
    "a huge shape": lambda m: m["shrunk"]["tensors"]["fc1.weight"].update(shape=[2**60, 784]),
    "a larger entry": lambda m: m["entries"]["fc1.weight"].update(shape=[300, 784]),
    "an attribute of nothing": lambda m: m["shrunk"].update(
        attributes={"fc1": {"num_heads": [4, 2]}}
    ),
    "buffers that are not there": lambda m: m.update(buffers=["x"]),
    "another proof": lambda m: m.update(proof="0" * 64),
    "another hash": lambda m: m.update(hash="0" * 64),
    "a newer version": lambda m: m.update(version=3),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_manifest_that_lies_is_refused(copied, damage):
    rewrite(copied, DAMAGE[damage])
    with pytest.raises(ArtifactError) as caught:
        slt_compress.load(copied)
    assert "\n" not in str(caught.value)


def test_a_changed_file_is_refused(copied):
    for name in (WEIGHTS, PROOF):
        data = bytearray((copied / name).read_bytes())
        data[-1] ^= 1
        (copied / name).write_bytes(data)
        with pytest.raises(ArtifactError, match="changed or damaged"):
            slt_compress.load(copied)
        data[-1] ^= 1
        (copied / name).write_bytes(data)
    slt_compress.load(copied)
    (copied / PROOF).unlink()
    with pytest.raises(ArtifactError, match=PROOF):
        slt_compress.load(copied)


def test_weights_of_another_model_are_no_proof(copied):
    tensors = {name: tensor.clone() for name, tensor in load_file(copied / WEIGHTS).items()}
    manifest = read_manifest(copied / WEIGHTS, ArtifactError)
    tensors["fc1.weight"][0, 0] *= 1.5
    manifest["hash"] = sha256_tensors(tensors)
    save_file(tensors, copied / WEIGHTS, metadata={"slt": json.dumps(manifest)})
    found = slt_compress.verify(copied, in_process=True)
    assert next(check.name for check in found.checks if not check.ok) == "weights"
