"""Imports lose no mask: any mask of any tensor is in the ticket, or the import names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import slt_compress
from slt_compress.errors import SltError, SourceError, TicketError
from slt_compress.searching.recipes import Recipe
from slt_compress.tickets.importing import import_checkpoint

Tensors = dict[str, Tensor]
NAMES = ("vit", "bert", "gpt2", "llama", "mixtral", "resnet", "convnext")


def floats(tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors that a mask can be of: no statistics and no counters, which are buffers."""
    statistics = ("running_mean", "running_var", "num_batches_tracked", "position_ids")
    return sorted(
        name for name, tensor in tensors.items()
        if tensor.is_floating_point() and not name.endswith(statistics)
    )  # fmt: skip


def mask_for(tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(tensor.shape, generator=generator) < 0.6
    mask.view(-1)[0], mask.view(-1)[-1] = True, False
    return mask


def as_zeros(tensors: Tensors, masks: Tensors) -> Tensors:
    return {n: torch.where(masks[n], t, 0) if n in masks else t for n, t in tensors.items()}


def as_torch(tensors: Tensors, masks: Tensors) -> Tensors:
    rest = {name: tensor for name, tensor in tensors.items() if name not in masks}
    for name, mask in masks.items():
        rest[f"{name}_orig"], rest[f"{name}_mask"] = tensors[name], mask.float()
    return rest


def as_beside(tensors: Tensors, masks: Tensors) -> Tensors:
    """A mask beside the unmasked weight, as tools that do not reparametrize write it."""
    return {**tensors, **{f"{name}_mask": mask.to(torch.uint8) for name, mask in masks.items()}}


def as_bitmask(tensors: Tensors, masks: Tensors) -> Tensors:
    rest = {name: tensor for name, tensor in tensors.items() if name not in masks}
    for name, mask in masks.items():
        prefix = name.removesuffix(".weight")
        bits = np.packbits(mask.numpy(), axis=-1, bitorder="little")
        rest |= {
            f"{prefix}.compressed": tensors[name][mask],
            f"{prefix}.bitmask": torch.from_numpy(bits),
            f"{prefix}.shape": torch.tensor(tensors[name].shape),
        }
    return rest


SPELLINGS = {"zeros": as_zeros, "torch": as_torch, "beside": as_beside, "bitmask": as_bitmask}


def filled(tensors: Tensors) -> Tensors:
    """The same without a zero: what is zero afterwards was masked."""
    return {
        name: torch.where(tensor == 0, torch.full_like(tensor, 0.5), tensor)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }


def write(folder: Path, tensors: Tensors) -> None:
    with safe_open(folder / "model.safetensors", "pt") as opened:
        metadata = opened.metadata()
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata)


def spelled(source: Path, folder: Path, spelling: str, masks: Tensors) -> Path:
    """A copy of a checkpoint without zeros, masked in a spelling; beside it the masked model."""
    for place in (folder, folder.with_name("plain")):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(source, place)
    tensors = filled(load_file(source / "model.safetensors"))
    write(folder, SPELLINGS[spelling](tensors, masks))
    write(folder.with_name("plain"), as_zeros(tensors, masks))
    return folder


def imported(folder: Path) -> slt_compress.Ticket:
    ticket = folder.with_name("ticket")
    for place in (ticket, folder.with_name("ticket-origin")):
        shutil.rmtree(place, ignore_errors=True)
    return import_checkpoint(folder, ticket, recipe=Recipe().to_dict())


def check_complete(folder: Path, masks: Tensors) -> None:
    """The ticket removes as many weights as the masks do, and its model is the masked one."""
    ticket = imported(folder)
    assert ticket.masks.total - ticket.masks.kept == sum(int((~m).sum()) for m in masks.values())
    wanted = slt_compress.open_checkpoint(folder.with_name("plain")).module.state_dict()
    found = slt_compress.load(ticket.path).state_dict()
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
    checks = {
        check.name: check for check in slt_compress.verify(ticket.path, in_process=True).checks
    }
    assert all(check.ok for check in checks.values()), checks
    assert f"{len(wanted)} of {len(wanted)}" in checks["imported"].detail


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("import") / "model"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), name=st.sampled_from(NAMES), spelling=st.sampled_from(sorted(SPELLINGS)))
def test_any_mask_of_any_tensors_is_imported(
    checkpoints: dict[str, Path], folder: Path, data: st.DataObject, name: str, spelling: str
) -> None:
    source = checkpoints[name]
    tensors = load_file(source / "model.safetensors")
    able = [n for n in floats(tensors) if spelling != "bitmask" or n.endswith(".weight")]
    if spelling == "beside":
        able = [n for n in able if n.rpartition(".")[2] in ("weight", "bias")]
    chosen = data.draw(st.lists(st.sampled_from(able), min_size=1, unique=True, max_size=12))
    seed = data.draw(st.integers(0, 2**16))
    masks = {n: mask_for(tensors[n], seed + i) for i, n in enumerate(sorted(chosen))}
    check_complete(spelled(source, folder, spelling, masks), masks)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_mask_of_every_tensor_is_imported(
    checkpoints: dict[str, Path], folder: Path, name: str, spelling: str
) -> None:
    source = checkpoints[name]
    tensors = load_file(source / "model.safetensors")
    able = [n for n in floats(tensors) if n.rpartition(".")[2] in ("weight", "bias")]
    able = [n for n in able if spelling != "bitmask" or n.endswith(".weight")]
    masks = {n: mask_for(tensors[n], i) for i, n in enumerate(able)}
    check_complete(spelled(source, folder, spelling, masks), masks)


FORMATS = ("dense", "mask", "sparse-csr", "bitmask", "coded", "auto")


def test_masks_of_biases_and_embeddings_are_exported(
    checkpoints: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoints["bert"] / "model.safetensors")
    masks = {n: mask_for(tensors[n], i) for i, n in enumerate(floats(tensors))}
    ticket = imported(spelled(checkpoints["bert"], folder, "torch", masks))
    wanted = slt_compress.load(ticket.path).state_dict()
    for format in FORMATS:
        out = slt_compress.export(ticket.path, format=format, out=tmp_path / format).path
        assert slt_compress.verify(out, in_process=True).ok, format
        found = slt_compress.load(out).state_dict()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), format


def test_experts_stored_one_by_one_keep_their_masks(
    checkpoints: dict[str, Path], folder: Path
) -> None:
    tensors = load_file(checkpoints["mixtral"] / "model.safetensors")
    experts = [name for name in tensors if ".experts." in name]
    assert len(experts) == 18  # 2 layers of 3 experts with 3 matrices, which loading fuses
    for chosen in (experts, experts[:1], experts[3:8]):
        masks = {name: mask_for(tensors[name], i) for i, name in enumerate(chosen)}
        check_complete(spelled(checkpoints["mixtral"], folder, "torch", masks), masks)


def test_zeros_that_nobody_pruned_are_no_masks(checkpoints: dict[str, Path], folder: Path) -> None:
    """A bias that is all zero, as at the start of training, and the row of the padding."""
    spelled(checkpoints["bert"], folder, "zeros", {})
    tensors = load_file(folder / "model.safetensors")
    weight = next(n for n in tensors if n.endswith("query.weight"))
    tensors[weight] = torch.where(mask_for(tensors[weight], 1), tensors[weight], 0)
    tensors[weight.replace("weight", "bias")].zero_()
    tensors["bert.embeddings.word_embeddings.weight"][0] = 0
    write(folder, tensors)
    assert set(imported(folder).masks) == {weight}
    tensors["bert.embeddings.word_embeddings.weight"][0] = 1
    tensors["bert.embeddings.word_embeddings.weight"][1] = 0
    write(folder, tensors)
    assert set(imported(folder).masks) == {weight, "bert.embeddings.word_embeddings.weight"}


@pytest.mark.parametrize("marker", [
    {"format": "dense", "config_groups": {}},
    {"format": "dense", "sparsity_config": {"format": "dense", "global_sparsity": 0.5}},
    {"format": "float-quantized", "sparsity_config": {"format": "sparse-bitmask"}},
])  # fmt: skip
def test_plain_zeros_in_a_folder_of_compressed_tensors(
    checkpoints: dict[str, Path], folder: Path, marker: dict[str, object]
) -> None:
    tensors = load_file(checkpoints["llama"] / "model.safetensors")
    masks = {n: mask_for(tensors[n], i) for i, n in enumerate(floats(tensors)) if "proj" in n}
    spelled(checkpoints["llama"], folder, "zeros", masks)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", **marker}
    (folder / "config.json").write_text(json.dumps(config))
    check_complete(folder, masks)


REFUSED = {
    "a mask of a tensor that the model lacks": (
        {"head.x_orig": torch.ones(3), "head.x_mask": torch.tensor([1.0, 0, 1])},
        TicketError, r"masks head\.x, which is no parameter",
    ),
    "a mask of a statistic": (
        {"bn1.running_mean_orig": torch.ones(3), "bn1.running_mean_mask": torch.zeros(3)},
        SltError, r"running_mean",
    ),
    "a mask of nothing": ({"x.weight_mask": torch.zeros(3)}, SourceError, r"x\.weight_mask"),
    "a soft mask": (
        {"x.weight_orig": torch.ones(3), "x.weight_mask": torch.tensor([1.0, 0.5, 0])},
        SourceError, r"x\.weight_mask holds more than 0 and 1",
    ),
    "quantized weights": (
        {"x.weight_scale": torch.ones(3)}, SourceError, r"quantized \(x\.weight_scale\)"
    ),
    "eight-bit floats": (
        {"x.weight": torch.ones(3).to(torch.float8_e4m3fn)}, SourceError, r"quantized \(x\.weight\)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_over_is_refused_by_name(
    checkpoints: dict[str, Path], folder: Path, case: str
) -> None:
    extra, error, words = REFUSED[case]
    name = "resnet" if "statistic" in case else "llama"
    tensors = load_file(checkpoints[name] / "model.safetensors")
    weight = next(n for n in floats(tensors) if n.endswith(("q_proj.weight", "conv1.weight")))
    spelled(checkpoints[name], folder, "torch", {weight: mask_for(tensors[weight], 0)})
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("bn1.running_mean", None)
    write(folder, {**tensors, **extra})
    with pytest.raises(error, match=words):
        imported(folder)
    assert not folder.with_name("ticket").exists()
    assert not folder.with_name("ticket-origin").exists()


def test_a_tensor_that_is_not_the_imported_one_fails_the_proof(
    checkpoints: dict[str, Path], folder: Path
) -> None:
    tensors = load_file(checkpoints["llama"] / "model.safetensors")
    weight = next(n for n in tensors if n.endswith("q_proj.weight"))
    ticket = imported(
        spelled(checkpoints["llama"], folder, "torch", {weight: mask_for(tensors[weight], 0)})
    )
    norm = next(n for n in tensors if n.endswith("norm.weight"))
    origin = folder.with_name("ticket-origin")
    changed = load_file(origin / "model.safetensors")
    changed[norm][3] += 1
    save_file(changed, origin / "model.safetensors", {"format": "pt"})
    checks = slt_compress.verify(ticket.path, in_process=True).checks
    (failed,) = [check for check in checks if not check.ok]
    assert failed.name == "imported"
    assert norm in failed.detail
