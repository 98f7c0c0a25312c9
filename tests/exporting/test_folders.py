"""Export of real tickets: rounded values, shards, masks alone that are bound to their origin."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import timm
import torch
from pipelines import RECIPE
from safetensors.torch import load_file, save_file

import slt_compress
from slt_compress.artifacts import read_mask_artifact
from slt_compress.artifacts.formats.entropy import entropy_bits
from slt_compress.errors import ArtifactError, SltError
from slt_compress.exporting.folders import parse_size
from slt_compress.storage.files import read_manifest

WEIGHTS = "weights.slt.safetensors"


@pytest.fixture(scope="module")
def ticket(checkpoints, data_sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("tickets") / "resnet"
    return slt_compress.search(checkpoints["resnet"], data_sets["pictures"], recipe=RECIPE, out=out)


@pytest.fixture(scope="module")
def random_ticket(tmp_path_factory):
    recipe = dataclasses.replace(RECIPE, init="random", dataset="digits")
    out = tmp_path_factory.mktemp("tickets") / "random"
    return slt_compress.search("lenet-300-100", recipe=recipe, out=out)


def same_bits(left, right):
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_rounded_values_are_declared_and_proven(ticket, tmp_path, name, dtype):
    out = slt_compress.export(
        ticket.path, format="bitmask", out=tmp_path / "x", values_dtype=name
    ).path
    exact = slt_compress.load(ticket.path).state_dict()
    found = slt_compress.load(out).state_dict()
    for key, tensor in exact.items():
        wanted = tensor.to(dtype).to(tensor.dtype) if key in ticket.masks else tensor
        assert torch.equal(found[key], wanted)
    assert any("lossy" in line and name in line for line in slt_compress.report(out).warnings)
    assert f"rounded to {name}" in (out / "README.md").read_text()
    checks = {check.name: check for check in slt_compress.verify(out, in_process=True).checks}
    assert all(check.ok for check in checks.values())
    assert f"rounded to {str(dtype).removeprefix('torch.')}" in checks["weights"].detail
    assert "bit-identical" in checks["logits"].detail  # on a probe of the rounded model
    # a file that says it is rounded, but holds other values, is found out
    manifest = read_manifest(out / WEIGHTS, ArtifactError)
    stored = {key: tensor.clone() for key, tensor in load_file(out / WEIGHTS).items()}
    key = next(key for key in stored if key.endswith(".values"))
    stored[key] = torch.nextafter(stored[key], torch.ones_like(stored[key]) * 9)
    rewrite(out, stored, manifest)
    failed = [c.name for c in slt_compress.verify(out, in_process=True).checks if not c.ok]
    assert "weights" in failed


def rewrite(out, stored, manifest):
    """Write an artifact again with the hash that goes with its tensors."""
    from slt_compress.storage.files import sha256_tensors

    manifest["hash"] = sha256_tensors(stored)
    save_file(stored, out / WEIGHTS, metadata={"slt": json.dumps(manifest)})


def test_a_dense_export_says_what_other_channels_do_to_its_zeros(ticket, tmp_path):
    dense = slt_compress.export(ticket.path, format="dense", out=tmp_path / "dense").path
    said = [line for line in slt_compress.report(dense).warnings if "in_chans" in line]
    assert len(said) == 1
    assert said[0] in (dense / "README.md").read_text()
    first = next(name for name, mask in ticket.masks.items() if mask.dim() == 4)
    assert first in said[0]
    whole, grey = (
        timm.create_model(f"local-dir:{dense}", pretrained=True, in_chans=channels)
        .get_parameter(first) for channels in (3, 1)
    )  # fmt: skip
    assert float((grey == 0).float().mean()) < float((whole == 0).float().mean())
    other = slt_compress.export(ticket.path, format="auto", out=tmp_path / "auto").path
    assert not any("in_chans" in line for line in slt_compress.report(other).warnings)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with torch.no_grad():
        module[0].weight[0, 0] = 1e6
    batches = [torch.ones(2, 4)]
    found = slt_compress.search(
        module, batches, recipe=RECIPE, out=tmp_path / "t",
        loss_fn=lambda model, batch: model(batch).square().mean(),
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="too large"):
        slt_compress.export(found.path, format="auto", out=tmp_path / "x", values_dtype="fp16",
                            model=module)  # fmt: skip
    slt_compress.export(found.path, format="auto", out=tmp_path / "x", values_dtype="bf16",
                        model=module)  # fmt: skip
    for bad in ({"values_dtype": "int4"}, {"max_shard_size": "big"}, {"format": "zip"}):
        with pytest.raises(ArtifactError):
            slt_compress.export(found.path, out=tmp_path / "y", model=module,
                                **{"format": "auto", **bad})  # fmt: skip
    for format in ("dense", "mask"):
        with pytest.raises(ArtifactError, match="no values to round"):
            slt_compress.export(found.path, format=format, out=tmp_path / "y", model=module,
                                values_dtype="bf16")  # fmt: skip
    assert not (tmp_path / "y").exists()


def test_shards_from_a_ticket(ticket, tmp_path):
    whole = slt_compress.export(ticket.path, format="bitmask", out=tmp_path / "whole")
    shards = slt_compress.export(
        ticket.path, format="bitmask", out=tmp_path / "shards", max_shard_size="100KB"
    )
    files = [file for file in shards.path.glob("weights.slt-*.safetensors")]
    assert len(files) > 1
    assert shards.entries == whole.entries
    same_bits(
        slt_compress.load(shards.path).state_dict(), slt_compress.load(whole.path).state_dict()
    )
    assert slt_compress.verify(shards.path, in_process=True).ok


def test_sizes():
    assert [parse_size(size) for size in ("5GB", "500 mb", "2KiB", "17", 99)] == [
        5 * 10**9, 500 * 10**6, 2048, 17, 99,
    ]  # fmt: skip
    for bad in ("0", "GB", "-1", "1.5GB", "1TB", ""):
        with pytest.raises(ArtifactError, match="not a file size"):
            parse_size(bad)


def test_a_mask_alone_is_the_ticket_without_its_evidence(ticket, tmp_path):
    artifact = slt_compress.export(ticket.path, format="mask", out=tmp_path / "x")
    found = slt_compress.load(tmp_path / "x")
    same_bits(found.state_dict(), slt_compress.load(ticket.path).state_dict())
    assert slt_compress.verify(tmp_path / "x", in_process=True).ok
    stored = load_file(tmp_path / "x" / WEIGHTS)
    bound = sum(entropy_bits(m.numel(), int(m.sum())) for m in ticket.masks.values()) / 8
    # as many bytes as the densities leave open, and a few numbers per layer for what models them
    assert stored["masks"].nbytes <= 1.003 * bound + 6 * len(ticket.masks)
    assert {key.removeprefix("buffer/") for key in stored} - {"masks"} == set(ticket.buffers)
    assert ticket.buffers
    assert artifact.dense_nbytes > 10 * stored["masks"].nbytes


def test_a_mask_of_a_random_init_needs_no_weights_at_all(random_ticket, tmp_path):
    out = slt_compress.export(random_ticket.path, format="mask", out=tmp_path / "x").path
    same_bits(
        slt_compress.load(out).state_dict(), slt_compress.load(random_ticket.path).state_dict()
    )
    checks = slt_compress.verify(out, in_process=True)
    assert checks.ok, checks
    assert slt_compress.report(out).sizes["mask"] < 0.03 * slt_compress.report(out).sizes["dense"]


def test_a_mask_of_stored_weights_brings_them(tmp_path):
    recipe = dataclasses.replace(RECIPE, init="default", dataset="digits")
    found = slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "t")
    out = slt_compress.export(found.path, format="mask", out=tmp_path / "x").path
    same_bits(slt_compress.load(out).state_dict(), slt_compress.load(found.path).state_dict())
    assert slt_compress.verify(out, in_process=True).ok


def test_a_mask_on_other_weights_is_refused(ticket, checkpoints, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(checkpoints["resnet"], origin)
    out = slt_compress.export(ticket.path, format="mask", out=tmp_path / "x", origin=origin).path
    same_bits(
        slt_compress.load(out, origin=origin).state_dict(),
        slt_compress.load(ticket.path).state_dict(),
    )
    weights = load_file(origin / "model.safetensors")
    other = {key: w + 0.5 if w.is_floating_point() else w.clone() for key, w in weights.items()}
    save_file(other, origin / "model.safetensors")
    with pytest.raises(ArtifactError, match="not those that"):
        slt_compress.load(out, origin=origin)
    assert not slt_compress.verify(out, origin=origin, in_process=True).ok


MASK_DAMAGE = {
    "another count": lambda m, t: next(iter(m["entries"].values())).update(kept=3),
    "a lost site": lambda m, t: m["entries"].pop(next(iter(m["entries"]))),
    "another shape": lambda m, t: next(iter(m["entries"].values())).update(shape=[2**40, 2**20]),
    "another codec": lambda m, t: next(iter(m["entries"].values())).update(format="bitmask"),
    "no buffers": lambda m, t: m.update(buffers=[]),
    "a stored name that is none": lambda m, t: m.update(stored=["x"]),
    "a further tensor": lambda m, t: t.update(more=torch.zeros(1)),
    "no masks": lambda m, t: t.pop("masks"),
    "fewer words": lambda m, t: t.update(masks=t["masks"][:-400]),
    "more words": lambda m, t: t.update(masks=torch.cat([t["masks"]] * 2)),
    "other words": lambda m, t: t.update(masks=t["masks"] ^ 0x55),
    "masks of numbers": lambda m, t: t.update(masks=torch.zeros(8)),
    "no provenance": lambda m, t: m.pop("provenance"),
    "no origin": lambda m, t: m["provenance"].pop("origin"),
    "another hash of the weights": lambda m, t: m["provenance"].update(weights_hash="0"),
}


@pytest.mark.parametrize("damage", MASK_DAMAGE)
def test_a_mask_that_lies_is_refused(ticket, tmp_path, damage):
    out = slt_compress.export(ticket.path, format="mask", out=tmp_path / "x").path
    manifest = read_manifest(out / WEIGHTS, ArtifactError)
    stored = {key: tensor.clone() for key, tensor in load_file(out / WEIGHTS).items()}
    MASK_DAMAGE[damage](manifest, stored)
    rewrite(out, stored, manifest)
    with pytest.raises(SltError) as caught:
        slt_compress.load(out)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_mask_is_refused(ticket, tmp_path):
    out = slt_compress.export(ticket.path, format="mask", out=tmp_path / "x").path
    data = bytearray((out / WEIGHTS).read_bytes())
    data[-3] ^= 16
    (out / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtifactError, match="do not have their hash"):
        read_mask_artifact(out)
    slt_compress.export(ticket.path, format="auto", out=tmp_path / "y")
    with pytest.raises(ArtifactError, match="does not hold a mask"):
        read_mask_artifact(tmp_path / "y")
