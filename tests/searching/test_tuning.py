"""Scalars beside masks: trained, stored, counted, exported and proved; all else is untouched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import slt_compress
from slt_compress.artifacts.formats import FORMATS
from slt_compress.errors import RecipeError, TicketError
from slt_compress.evidence.audit import audit_model
from slt_compress.searching.recipes import Recipe, parse_recipe
from slt_compress.storage.files import read_safetensors, write_safetensors
from slt_compress.tickets import Ticket
from slt_compress.tickets.deriving import merge

TRAINING = {"steps": 4, "batch_size": 4, "selections": 2}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "head": ("vit", "pictures", {"pattern": "head", "tuning": {"gains": "unit"}}),
    "channel": ("resnet", "pictures", {
        "pattern": "channel", "tuning": {"gains": "unit", "parameters": ["norms", "biases"]}}),
    "norms": ("bert", "reviews", {"tuning": {"parameters": ["norms"]}}),
    "random": ("lenet-300-100", "digits", {
        "pattern": "neuron", "init": "random", "tuning": {"gains": "unit"}}),
    "random-biases": ("lenet-300-100", "digits", {
        "init": "random", "tuning": {"parameters": ["biases"], "lr": 0.05}}),
    "groups": ("llama", "prose", {"pattern": "2:4", "tuning": {"parameters": ["norms"]}}),
}  # fmt: skip


def short(**changes: Any) -> Recipe:
    return parse_recipe({"training": TRAINING, "target_sparsity": 0.5, **changes})


@pytest.fixture(scope="module", params=CASES)
def tuned(
    request: pytest.FixtureRequest,
    checkpoints: dict[str, Path],
    data_sets: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Ticket:
    name, data, keys = CASES[request.param]
    return slt_compress.search(
        checkpoints.get(name, name), data_sets.get(data, data), recipe=short(**keys),
        out=tmp_path_factory.mktemp(request.param) / "ticket",
    )  # fmt: skip


def origin_of(ticket: Ticket) -> torch.nn.Module:
    record = ticket.origin
    init = record.get("init")
    return slt_compress.open_checkpoint(
        str(record["source"]),
        init=init["scheme"] if isinstance(init, dict) else None,
        num_classes=10 if isinstance(init, dict) else None,
    ).module


def test_what_is_trained_is_stored_counted_and_named(tuned: Ticket) -> None:
    assert tuned.version == 3
    report = slt_compress.report(tuned.path)
    numbers = sum(tensor.numel() for tensor in tuned.tuned.values())
    gains = sum(gains.count for gains in tuned.unit_gains.values())
    assert (report.sparsity["gains"], report.sparsity["tuned"]) == (gains, numbers)
    share = (gains + numbers) / report.sparsity["parameters"]
    assert report.sparsity["tuned_parameters"] == pytest.approx(share)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    card = (tuned.path / "README.md").read_text()
    assert "No weight was trained" not in card
    if gains:
        assert gains == report.sparsity["units"]["kept"]
        assert f"{gains:,} gains of kept units" in card
        values = [v for g in tuned.unit_gains.values() for v in g.values if v is not None]
        assert len(set(values)) > 1
    if numbers:
        assert f"{numbers:,} norms and biases" in card


def test_the_tuned_values_are_not_those_of_the_origin_and_the_origin_keeps_them(
    tuned: Ticket,
) -> None:
    module = dict(origin_of(tuned).named_parameters())
    for name, value in tuned.tuned.items():
        assert not torch.equal(value, module[name])
    loaded = dict(slt_compress.load(tuned.path).named_parameters())
    for name, value in loaded.items():
        if name in tuned.tuned:
            assert torch.equal(value, tuned.tuned[name])
        elif name in tuned.masks:
            factor = tuned.factors.get(name, 1.0)
            whole = (module[name].float() * factor).to(value.dtype)
            assert torch.equal(value, whole * tuned.masks[name])


@pytest.mark.parametrize("format", [*FORMATS, "mask"])
def test_every_export_is_proved(tuned: Ticket, format: str, tmp_path: Path) -> None:
    out = slt_compress.export(tuned.path, format=format, out=tmp_path / format).path
    checks = {check.name: check for check in proofs(out)}
    assert ("gains" in checks) == bool(tuned.unit_gains)
    assert ("tuned" in checks) == bool(tuned.tuned)
    for name in sorted(tuned.tuned)[:1]:
        assert name in checks["tuned"].detail
    here, there = (slt_compress.load(path).state_dict() for path in (out, tuned.path))
    assert {name: value.tolist() for name, value in here.items()} == {
        name: value.tolist() for name, value in there.items()
    }
    manifest = slt_compress.artifacts.describe_artifact(out).manifest
    assert manifest.integer("version") == 2
    assert slt_compress.report(out).sparsity == slt_compress.report(tuned.path).sparsity


def proofs(path: Path) -> tuple[Any, ...]:
    found = slt_compress.verify(path, in_process=True)
    assert found.ok, found
    return found.checks


def test_a_ticket_is_proved(tuned: Ticket) -> None:
    names = [check.name for check in proofs(tuned.path)]
    assert ("gains" in names, "tuned" in names) == (bool(tuned.unit_gains), bool(tuned.tuned))


def test_a_changed_number_is_found(tuned: Ticket, tmp_path: Path) -> None:
    out = slt_compress.export(tuned.path, format="bitmask", out=tmp_path / "bitmask").path
    file = out / "weights.slt.safetensors"
    tensors = read_safetensors(file, TicketError)
    manifest = slt_compress.artifacts.describe_artifact(out).manifest.values
    name = next(iter(tuned.tuned), None)
    key = f"{next(iter(tuned.unit_gains))}.values" if name is None else name
    tensors[key] = tensors[key] + 1.0
    digest = slt_compress.storage.files.sha256_tensors(tensors)
    write_safetensors(file, tensors, {**manifest, "hash": digest})
    found = slt_compress.verify(out, in_process=True)
    wrong = "weights" if name is None else "tuned"
    assert wrong in [check.name for check in found.checks if not check.ok]


def test_a_shrunk_model_is_proved(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    name, data, keys = CASES["random"]
    keys = {**keys, "tuning": {"gains": "unit", "parameters": "biases"}}
    ticket = slt_compress.search(name, data, recipe=short(**keys), out=tmp_path / "ticket")
    out = slt_compress.export(ticket.path, shrink=True, out=tmp_path / "small").path
    names = [check.name for check in proofs(out)]
    assert {"gains", "tuned"} <= set(names)


def test_tuned_parameters_follow_folded_orders(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    recipe = short(
        pattern="2:4", permute=True, tuning={"parameters": ["norms", "biases"], "lr": 0.01}
    )
    ticket = slt_compress.search(
        checkpoints["bert"], data_sets["reviews"], recipe=recipe, out=tmp_path / "ticket"
    )
    assert ticket.version == 4
    assert ticket.orders
    for fold in (False, True):
        out = slt_compress.export(ticket.path, fold=fold, out=tmp_path / str(fold)).path
        assert "tuned" in [check.name for check in proofs(out)]


def test_an_audit_knows_the_gains(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    name, data, keys = CASES["head"]
    ticket = slt_compress.search(
        checkpoints[name], data_sets[data], recipe=short(**keys), out=tmp_path / "ticket"
    )
    out = slt_compress.export(ticket.path, out=tmp_path / "dense").path
    found = audit_model(out, ticket.path)
    assert found.holds
    assert found.to_dict()["totals"]["kept_changed"] == 0


def test_a_base_takes_it_on_and_off(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    name, data, keys = CASES["channel"]
    ticket = slt_compress.search(
        checkpoints[name], data_sets[data], recipe=short(**keys), out=tmp_path / "ticket"
    )
    module = origin_of(ticket)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    base = slt_compress.Base(module).apply(ticket.path)
    masked = slt_compress.load(ticket.path).state_dict()
    assert all(torch.equal(value, masked[key]) for key, value in module.state_dict().items())
    base.remove()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_a_plan_counts_what_would_be_trained(
    checkpoints: dict[str, Path], data_sets: dict[str, str]
) -> None:
    name, data, keys = CASES["channel"]
    plan = slt_compress.plan(checkpoints[name], data_sets[data], recipe=short(**keys))
    module = slt_compress.open_checkpoint(checkpoints[name]).module
    one_dimensional = [p.numel() for p in module.parameters() if p.dim() == 1]
    assert plan.sparsity["tuned"] == sum(one_dimensional)
    assert plan.sparsity["gains"] > 0
    assert "--gains unit --tune norms,biases" in plan.command
    plain = slt_compress.plan(checkpoints[name], data_sets[data], recipe=short())
    assert not {"gains", "tuned"} & set(plain.sparsity)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tuning": {"gains": "unit"}}, "the pattern is unstructured"),
        ({"tuning": {"gains": "unit"}, "pattern": "neuron", "method": "magnitude"}, "nothing"),
        ({"tuning": {"parameters": "norms"}}, "this model has no norms"),
        (
            {
                "tuning": {"gains": "unit"},
                "pattern": "neuron",
                "method": {"name": "relaxed", "signed": True},
            },
            "a sign of its own",
        ),
    ],
    ids=["weights", "one-shot", "none", "signed"],
)
def test_what_cannot_be_trained_is_refused_before_any_step(
    keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    recipe = short(init="random", dataset="digits", **keys)
    with pytest.raises(RecipeError, match=words):
        slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "ticket")
    with pytest.raises(RecipeError, match=words):
        slt_compress.plan("lenet-300-100", recipe=recipe)


def test_a_search_block_by_block_trains_nothing_beside_the_scores(
    checkpoints: dict[str, Path], data_sets: dict[str, str], tmp_path: Path
) -> None:
    recipe = short(tuning={"parameters": "norms"}, objective="reconstruct")
    with pytest.raises(RecipeError, match="leave tuning out"):
        slt_compress.search(
            checkpoints["vit"], data_sets["pictures"], recipe=recipe, out=tmp_path / "ticket"
        )


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"heads.*cannot be tuned; known: norms, biases"):
        short(tuning={"parameters": "heads"})


def test_such_tickets_cannot_be_merged(tmp_path: Path) -> None:
    name, data, keys = CASES["random"]
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        slt_compress.search(name, data, recipe=short(**keys), out=path)
    with pytest.raises(TicketError, match="trained for one mask"):
        merge(*paths, "and", tmp_path / "c")


def test_without_tuning_a_recipe_records_nothing_of_it() -> None:
    assert "tuning" not in short().to_dict()
    assert short(tuning={"parameters": "norms"}).to_dict()["tuning"]["parameters"] == ("norms",)
