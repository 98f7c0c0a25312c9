"""Checkpoints that others pruned become tickets, in each spelling that is out there."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import slt_compress
from slt_compress.cli.app import main
from slt_compress.errors import SltError, SourceError, TicketError
from slt_compress.searching.recipes import Recipe
from slt_compress.storage.locks import locked
from slt_compress.tickets import importing
from slt_compress.tickets.importing import import_checkpoint, unpacked


def pruned(tensors):
    """Matrices of the encoder with two thirds of their weights zero; and their masks."""
    generator = torch.Generator().manual_seed(0)
    found, masks = dict(tensors), {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and ".layer" in name and name.endswith(".weight"):
            masks[name] = torch.rand(tensor.shape, generator=generator) < 0.34
            found[name] = tensor * masks[name]
    assert len(masks) > 4
    return found, masks


def as_zeros(tensors, masks):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def as_torch(tensors, masks):
    """What torch.nn.utils.prune leaves in a state dict; a dropped weight keeps its value."""
    rest = {name: tensor for name, tensor in tensors.items() if name not in masks}
    for name, mask in masks.items():
        rest[f"{name}_orig"] = torch.where(mask, tensors[name], torch.full_like(tensors[name], 7.0))
        rest[f"{name}_mask"] = mask.float()
    return rest


def as_bitmask(tensors, masks, *, old=False):
    rest = {name: tensor for name, tensor in tensors.items() if name not in masks}
    for name, mask in masks.items():
        prefix = name if old else name.removesuffix(".weight")
        bits = np.packbits(mask.numpy(), axis=-1, bitorder="little")
        counts = mask.sum(dim=-1)
        rest |= {
            f"{prefix}.compressed": tensors[name][mask],
            f"{prefix}.bitmask": torch.from_numpy(bits),
            f"{prefix}.row_offsets": counts.cumsum(0) - counts,
            f"{prefix}.shape": torch.tensor(tensors[name].shape),
        }
    return rest


SPELLINGS = {
    "zeros": as_zeros,
    "torch": as_torch,
    "bitmask": as_bitmask,
    "old bitmask": lambda tensors, masks: as_bitmask(tensors, masks, old=True),
}


@pytest.fixture
def folder(checkpoints, tmp_path):
    shutil.copytree(checkpoints["vit"], tmp_path / "model")
    return tmp_path / "model"


def respell(folder, spelling):
    """Prune the checkpoint in the folder and write it in a spelling; the pruned tensors."""
    tensors, masks = pruned(load_file(folder / "model.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(SPELLINGS[spelling](tensors, masks), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if "bitmask" in spelling:
        marker = {"quant_method": "compressed-tensors", "sparsity_config": {"format": spelling}}
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": marker}))
    return tensors, masks


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_becomes_a_ticket(folder, tmp_path, spelling, capsys):
    tensors, masks = respell(folder, spelling)
    with pytest.raises(SystemExit) as caught:
        main(["import", str(folder), "-o", str(tmp_path / "ticket")])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ticket'}\n"
    ticket = slt_compress.report(tmp_path / "ticket")
    assert ticket.sparsity["kept"] == sum(int(mask.sum()) for mask in masks.values())
    assert ticket.sparsity["gated"] == sum(mask.numel() for mask in masks.values())
    assert slt_compress.verify(tmp_path / "ticket", in_process=True).ok
    (tmp_path / "plain").mkdir()
    shutil.copytree(folder, tmp_path / "plain", dirs_exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "plain/model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (tmp_path / "plain" / "config.json").write_text(json.dumps(config))
    wanted = slt_compress.open_checkpoint(tmp_path / "plain").module.state_dict()
    found = slt_compress.load(tmp_path / "ticket").state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    out = slt_compress.export(tmp_path / "ticket", format="auto", out=tmp_path / "x").path
    assert slt_compress.verify(out, in_process=True).ok
    assert (tmp_path / "ticket-origin").exists() == (spelling != "zeros")
    if spelling == "torch":  # the origin has its dropped weights back
        origin = slt_compress.open_checkpoint(tmp_path / "ticket-origin").module
        assert any(bool((weight == 7.0).any()) for weight in origin.parameters())


@pytest.fixture
def masked(folder, tmp_path):
    """A checkpoint in a spelling whose plain weights are written beside the ticket."""
    shutil.copytree(folder, tmp_path / "masked")
    tensors = as_torch(*pruned(load_file(folder / "model.safetensors")))
    save_file(
        {n: t.contiguous() for n, t in tensors.items()}, tmp_path / "masked/model.safetensors"
    )
    return tmp_path / "masked"


def test_an_origin_without_its_ticket_is_used_again(masked, tmp_path, monkeypatch):
    """Killed between the two: the same import goes on, and nothing of it is lost or replaced."""
    out, origin = tmp_path / "t", tmp_path / "t-origin"
    with monkeypatch.context() as patch:
        patch.setattr("slt_compress.tickets.importing._ticket_of", lambda *a: 1 / 0)
        patch.setattr("shutil.rmtree", lambda *a, **k: None)
        with pytest.raises(ZeroDivisionError):
            import_checkpoint(masked, out, recipe=Recipe().to_dict())
    written = (origin / "model.safetensors").stat().st_mtime_ns
    ticket = import_checkpoint(masked, out, recipe=Recipe().to_dict())
    assert slt_compress.verify(ticket.path, in_process=True).ok
    assert (origin / "model.safetensors").stat().st_mtime_ns == written
    assert not list(tmp_path.glob(".*"))
    shutil.rmtree(out)
    with monkeypatch.context() as patch:  # a failure leaves what it did not write
        patch.setattr("slt_compress.tickets.importing._ticket_of", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_checkpoint(masked, out, recipe=Recipe().to_dict())
    assert (origin / "model.safetensors").exists()


def test_an_interrupt_after_the_ticket_leaves_both(masked, tmp_path, monkeypatch):
    out = tmp_path / "t"

    def interrupted(*arguments, **options):
        ticket_of(*arguments, **options)
        raise SystemExit(130)

    ticket_of = importing._ticket_of
    monkeypatch.setattr(importing, "_ticket_of", interrupted)
    with pytest.raises(SystemExit):
        import_checkpoint(masked, out, recipe=Recipe().to_dict())
    assert slt_compress.verify(out, in_process=True).ok


def test_an_origin_that_is_something_else_is_not_touched(masked, tmp_path):
    (tmp_path / "t-origin").mkdir()
    (tmp_path / "t-origin" / "config.json").write_text("{}")
    with pytest.raises(TicketError, match="t-origin is not empty"):
        import_checkpoint(masked, tmp_path / "t", recipe=Recipe().to_dict())
    assert (tmp_path / "t-origin" / "config.json").read_text() == "{}"


def test_two_imports_to_one_folder(masked, tmp_path):
    import_checkpoint(masked, tmp_path / "t", recipe=Recipe().to_dict())
    shutil.rmtree(tmp_path / "t")
    with (
        locked(tmp_path / "t-origin"),
        pytest.raises(TicketError, match="another process is importing"),
    ):
        import_checkpoint(masked, tmp_path / "t", recipe=Recipe().to_dict())
    assert (tmp_path / "t-origin" / "model.safetensors").exists()


def test_what_is_no_pruned_checkpoint_is_refused(folder, tmp_path):
    with pytest.raises(TicketError, match="no weight with zeros"):
        import_checkpoint(folder, tmp_path / "t", recipe=Recipe().to_dict())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").write_text("1")
    with pytest.raises(TicketError):
        import_checkpoint(folder, tmp_path / "taken", recipe=Recipe().to_dict())
    with pytest.raises(SltError):
        import_checkpoint(tmp_path / "nowhere", tmp_path / "t", recipe=Recipe().to_dict())
    assert not (tmp_path / "t").exists()


DAMAGE = {
    "a lost part": lambda t: t.pop("a.shape"),
    "another shape": lambda t: t.update({"a.shape": torch.tensor([3, 90])}),
    "a huge shape": lambda t: t.update({"a.shape": torch.tensor([2**40, 2**20])}),
    "a negative shape": lambda t: t.update({"a.shape": torch.tensor([-3, -9])}),
    "fewer values": lambda t: t.update({"a.compressed": t["a.compressed"][1:]}),
    "a bitmask of floats": lambda t: t.update({"a.bitmask": t["a.bitmask"].float()}),
    "the weight twice": lambda t: t.update({"a.weight": torch.ones(3, 9)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bitmasks_are_refused(damage):
    weight = torch.arange(27.0).reshape(3, 9)
    tensors = as_bitmask({"a.weight": weight}, {"a.weight": weight % 2 == 0})
    assert torch.equal(unpacked(tensors, "x")[0]["a.weight"], weight * (weight % 2 == 0))
    DAMAGE[damage](tensors)
    with pytest.raises(SourceError):
        unpacked(tensors, "x")
    with pytest.raises(SourceError, match="another shape"):
        unpacked({"w_orig": torch.ones(2), "w_mask": torch.ones(3)}, "x")
