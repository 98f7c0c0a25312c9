"""Apply puts a mask on weights that moved, and calls the result derived."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from pico import save_bert
from safetensors.torch import load_file, save_file

from slt_compress.cli.app import main
from slt_compress.errors import ArtifactError
from slt_compress.evidence.audit import audit_model
from slt_compress.exporting.applying import RECORD, apply_ticket
from slt_compress.searching.recipes import Recipe
from slt_compress.storage.bits import same_bits
from slt_compress.tickets import read_ticket
from slt_compress.tickets.importing import import_checkpoint


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A ticket, and the folder of a model that was trained on from it without a mask."""
    folder = tmp_path_factory.mktemp("applying")
    save_bert(folder / "dense")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "dense")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and ".layer." in name:
            parameter.data *= torch.rand_like(parameter) < 0.1
    model.save_pretrained(folder / "origin")
    ticket = import_checkpoint(folder / "origin", folder / "t", recipe=Recipe().to_dict())
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(folder / "moved")
    return folder, ticket


def test_zeros_come_back_and_nothing_else_changes(case, tmp_path):
    folder, ticket = case
    found = apply_ticket(folder / "t", folder / "moved", tmp_path / "out")
    before, now = (load_file(f / "model.safetensors") for f in (folder / "moved", found.path))
    assert before.keys() == now.keys()
    for name, tensor in before.items():
        mask = ticket.masks.get(name)
        wanted = tensor if mask is None else tensor.masked_fill(~mask, 0.0)
        assert same_bits(now[name], wanted), name
    dropped = ticket.masks.total - ticket.masks.kept
    assert found.zeros == found.cleared == dropped
    audit = audit_model(found.path, folder / "t")
    assert audit.holds
    assert audit.totals()["kept_changed"] == ticket.masks.kept
    model = transformers.AutoModelForSequenceClassification.from_pretrained(found.path)
    assert same_bits(model.state_dict()[sorted(ticket.masks)[0]], now[sorted(ticket.masks)[0]])


def test_it_is_recorded_as_derived(case, tmp_path, capsys):
    folder, _ = case
    with pytest.raises(SystemExit) as left:
        main(["apply", str(folder / "t"), str(folder / "moved"), "-o", str(tmp_path / "out")])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "derived" in said
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["kind"] == "slt-derived"
    assert record["untouched"] is False
    assert record["ticket"] == read_ticket(folder / "t").hash
    with pytest.raises(SystemExit) as left:
        main(["verify", str(tmp_path / "out")])
    assert left.value.code == 1


def test_shards_and_single_files(case, tmp_path):
    folder, ticket = case
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "moved")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    found = apply_ticket(folder / "t", tmp_path / "shards", tmp_path / "out")
    assert audit_model(found.path, folder / "t").holds
    transformers.AutoModelForSequenceClassification.from_pretrained(found.path)
    alone = apply_ticket(folder / "t", folder / "moved" / "model.safetensors", tmp_path / "one")
    assert alone.cleared == found.cleared
    again = apply_ticket(folder / "t", tmp_path / "one", tmp_path / "two")
    assert again.cleared == 0
    assert again.zeros == ticket.masks.total - ticket.masks.kept


def test_what_cannot_be_masked_is_refused(case, tmp_path):
    folder, _ = case
    with pytest.raises(ArtifactError, match="not empty"):
        apply_ticket(folder / "t", folder / "moved", folder / "origin")
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ArtifactError, match="another model"):
        apply_ticket(folder / "t", tmp_path / "a.safetensors", tmp_path / "out")
    quantised = {"a.SCB": torch.ones(3), "a.weight": torch.ones(3, 3, dtype=torch.int8)}
    save_file(quantised, tmp_path / "q.safetensors")
    with pytest.raises(ArtifactError, match="quantise or convert afterwards"):
        apply_ticket(folder / "t", tmp_path / "q.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
