"""Nothing is built that is much larger than what there are weights for; refusals are cheap."""

from __future__ import annotations

import json
import resource
import shutil
import time

import pytest
import torch
from artifact_cases import export
from torch import nn

import slt_compress
from slt_compress.artifacts import read_artifact
from slt_compress.checkpoints import open_checkpoint
from slt_compress.checkpoints.bounds import bounded, bounded_count
from slt_compress.errors import SltError, SourceError, TicketError
from slt_compress.masks import Masks
from slt_compress.searching.recipes import parse_recipe

WEIGHTS = "weights.slt.safetensors"


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.fixture
def cheap():
    """Whatever happens in the test takes less than 100 MiB more, and 5 s of the processor."""
    memory, started = peak(), time.process_time()
    yield
    assert peak() - memory < 100
    assert time.process_time() - started < 5


def test_a_module_may_be_as_large_as_its_weights(cheap):
    with bounded(1000, 2, "x", SourceError):
        nn.Linear(10, 10)
    with (
        pytest.raises(SourceError, match="a larger model than its 1,000 weights"),
        bounded(1000, 2, "x", SourceError),
    ):
        nn.Linear(10**6, 10**5, device="meta")
    with pytest.raises(SourceError, match="more tensors"), bounded_count("x"):
        nn.ModuleList(nn.Linear(1, 1, device="meta") for _ in range(10**9))
    nn.Linear(10**6, 10**5, device="meta")  # the bound ends with its block


@pytest.mark.parametrize("size", [3 * 2**20, 10**10, 10**18, 10**20])
@pytest.mark.parametrize("format", ["coded", "bitmask", "sparse-csr"])
def test_an_artifact_that_claims_more_is_refused_before_it_is_built(tmp_path, cheap, format, size):
    checkpoint = open_checkpoint("lenet-300-100", init="random")
    masks = {n: torch.ones_like(p, dtype=torch.bool)
             for n, p in checkpoint.module.named_parameters() if p.dim() > 1}  # fmt: skip
    export(tmp_path / "x", checkpoint, Masks(masks), format)
    data = (tmp_path / "x" / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["slt"])
    manifest["config"]["num_classes"] = size
    header["__metadata__"]["slt"] = json.dumps(manifest)
    text = json.dumps(header).encode()
    (tmp_path / "x" / WEIGHTS).write_bytes(
        len(text).to_bytes(8, "little") + text + data[8 + length :]
    )
    with pytest.raises(SltError) as caught:
        read_artifact(tmp_path / "x")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def ticket(tmp_path_factory):
    recipe = {"target_sparsity": 0.9, "init": "random", "method": "magnitude",
              "evaluation": {"limit": 4}, "training": {"batch_size": 4}}  # fmt: skip
    return slt_compress.search(
        "lenet-300-100", "digits", recipe=parse_recipe(recipe),
        out=tmp_path_factory.mktemp("bounds") / "t",
    ).path  # fmt: skip


@pytest.mark.parametrize("size", [11, 3 * 2**20, 10**10, 10**19])
@pytest.mark.parametrize("format", ["ticket", "mask"])
def test_a_mask_with_more_classes_is_refused_before_they_are_made(
    ticket, tmp_path, cheap, size, format
):
    folder = tmp_path / "x"
    if format == "ticket":
        shutil.copytree(ticket, folder)
        manifest = json.loads((folder / "ticket.json").read_text())
        manifest["origin"]["config"]["num_classes"] = size
        (folder / "ticket.json").write_text(json.dumps(manifest))
    else:
        slt_compress.export(ticket, format="mask", out=folder)
        data = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        manifest = json.loads(header["__metadata__"]["slt"])
        manifest["provenance"]["origin"]["config"]["num_classes"] = size
        header["__metadata__"]["slt"] = json.dumps(manifest)
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(SltError) as caught:
        slt_compress.load(folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_whose_config_asks_for_more_is_refused(checkpoints, tmp_path, cheap):
    for name, key, value in (("vit", "intermediate_size", 10**8), ("resnet", "num_classes", 10**7),
                             ("bert", "vocab_size", 10**8)):  # fmt: skip
        shutil.copytree(checkpoints[name], tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config[key] = value
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        with pytest.raises(SourceError) as caught:
            open_checkpoint(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [10**30, -1, True, 0.5, None])
def test_a_seed_is_a_number_of_64_bits(ticket, tmp_path, seed):
    shutil.copytree(ticket, tmp_path / "x")
    manifest = json.loads((tmp_path / "x" / "ticket.json").read_text())
    manifest["origin"]["init"]["seed"] = seed
    (tmp_path / "x" / "ticket.json").write_text(json.dumps(manifest))
    with pytest.raises((SourceError, TicketError)) as caught:
        slt_compress.load(tmp_path / "x")
    assert "\n" not in str(caught.value)
