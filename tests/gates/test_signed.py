"""Signed masks: keep, drop or flip, from the gate to the ticket, the exports and the proof."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import slt_compress
from slt_compress.errors import RecipeError, TicketError
from slt_compress.evidence.checks import Verification
from slt_compress.evidence.controls import control_masks
from slt_compress.gates import METHODS, Learned, Phase, Relaxed, Sample
from slt_compress.gates.base import sample_key
from slt_compress.masks import Masks, masked_weight, unpack_bits
from slt_compress.searching.recipes import parse_recipe
from slt_compress.sites.budget import Budget, binarize, binarize_signed
from slt_compress.sites.layouts import ELEMENTWISE
from slt_compress.storage.files import sha256_file
from slt_compress.tickets import Ticket, read_ticket

SHAPE = (40, 30)
LEARNED = [name for name, method in METHODS.items() if isinstance(method(), Learned)]
FRESH = {"name": "relaxed", "signed": True, "signed_start": 0.0, "spread": 0.1}


def sample_of(*, shift: float = 0.1, rescale: bool = False, **phase: Any) -> Sample:
    return Sample(
        phase=Phase(step=3, seed=5, **phase), shift=shift, key=sample_key(5, "w"), rescale=rescale
    )


def scores_of(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
def test_a_signed_gate_is_the_unsigned_one_at_the_size_with_the_sign_of_the_score(
    name: str, hard: bool, rescale: bool
) -> None:
    sample = sample_of(hard=hard, rescale=rescale)
    score, weight, upstream = scores_of(), scores_of(1), scores_of(2)
    signed, unsigned = METHODS[name](signed=True), METHODS[name]()
    one = score.clone().requires_grad_()
    size = score.abs().requires_grad_()
    found = signed.effective(one, weight, sample)
    plain = unsigned.effective(size, weight, sample)
    assert torch.equal(found, plain * score.sign())
    assert (found != 0).any()
    found.backward(upstream)
    # d/ds sign(s) g(|s|) = g'(|s|): the gradient formula is the unsigned one
    plain.backward(upstream)
    assert one.grad is not None
    assert torch.equal(one.grad, size.grad)
    assert (one.grad[score < 0] != 0).any()


@pytest.mark.parametrize("name", ["relaxed", "hard-concrete", "gumbel"])
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    method, sample, nudge = METHODS[name](signed=True), sample_of(), 1e-3
    score = scores_of().mul(0.7)
    score = score[score.abs() > 2 * nudge]  # the gate jumps where its sign turns
    ones = torch.ones_like(score)
    leaf = score.clone().requires_grad_()
    method.effective(leaf, ones, sample).sum().backward()
    up, down = (method.effective(score + s * nudge, ones, sample) for s in (1, -1))
    inside = [(g.abs() > 0) & (g.abs() < 1) for g in (up, down)]
    smooth = inside[0] == inside[1]
    assert smooth.float().mean() > 0.95
    assert leaf.grad is not None
    differences = (up - down) / (2 * nudge)
    assert torch.allclose(leaf.grad[smooth], differences[smooth], atol=0.1)
    assert (differences[smooth & (score < 0)] > 0.1).any()


@pytest.mark.parametrize("name", LEARNED)
def test_a_gate_can_cross_zero(name: str) -> None:
    method = METHODS[name](signed=True)
    score = torch.full((500,), 0.05).requires_grad_()
    weight = torch.ones(500)
    target = -torch.ones(500)
    for step in range(60):
        sample = replace(sample_of(shift=-0.4), key=step)
        (method.effective(score, weight, sample) - target).square().sum().backward()
        with torch.no_grad():
            assert score.grad is not None
            score -= 0.02 * score.grad
            score.grad = None
    assert float((score < 0).float().mean()) > 0.9


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("phase", [Phase(step=0, seed=0), Phase(step=0, seed=0, hard=True)])
def test_the_budget_counts_the_size_of_the_scores(name: str, phase: Phase) -> None:
    method = METHODS[name](signed=True)
    scores = {"a": scores_of(1, (200, 100)), "b": scores_of(2, (100, 100)) * 2}
    start = dict.fromkeys(scores, 0.0)
    sizes = {name: score.abs() for name, score in scores.items()}
    shifts = method.shifts(sizes, Budget(density=0.01), 0.2, phase, start)
    gates = [
        method.effective(
            score, torch.ones_like(score),
            Sample(phase=phase, shift=shifts[name], key=3, rescale=False),
        )
        for name, score in scores.items()
    ]  # fmt: skip
    kept = sum(int((gate.abs() > 0.5).sum()) for gate in gates)
    assert kept == pytest.approx(0.2 * 30_000, rel=0 if phase.hard else 0.05)
    flipped = sum(int((gate < -0.5).sum()) for gate in gates)
    assert flipped == pytest.approx(kept / 2, rel=0.1)


def test_no_signed_score_starts_flipped() -> None:
    weight, prior = torch.zeros(100, 100), torch.rand(100, 100)
    near = Relaxed(signed=True, signed_start=0.0, spread=0.3).start(weight, None, 1)
    assert float(near.min()) >= 0.0
    assert float(near.median()) == pytest.approx(0.3 * 0.674, rel=0.05)
    away = Relaxed(signed=True, signed_start=0.4, spread=0.01).start(weight, None, 1)
    assert float(away.mean()) == pytest.approx(0.4, abs=0.01)
    ordered = Relaxed(signed=True, prior_spread=6.0).start(weight, prior, 1)
    assert torch.allclose(ordered, 6.0 * prior)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_signed_start_that_cannot_be_is_refused(value: float) -> None:
    for name in LEARNED:
        with pytest.raises(RecipeError, match="signed_start"):
            METHODS[name](signed=True, signed_start=value)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    density=st.floats(0.01, 1.0),
    scope=st.sampled_from(["global", "layer"]),
)
def test_flips_never_change_the_count(
    seed: int, sizes: list[int], density: float, scope: Any
) -> None:
    scores = {
        f"w{i}": scores_of(seed + i, (size,)).round(decimals=1) for i, size in enumerate(sizes)
    }
    budget = Budget(density=density, scope=scope)
    masks = binarize_signed(scores, budget)
    unsigned = binarize({name: score.abs() for name, score in scores.items()}, budget)
    assert masks.kept == unsigned.kept == max(1, round(density * sum(sizes)))
    for name, score in scores.items():
        assert torch.equal(masks[name], unsigned[name])
        flip = masks.flips.get(name, torch.zeros(score.shape, dtype=torch.bool))
        assert torch.equal(flip, masks[name] & score.signbit())
    assert masks.flipped == sum(int(f.sum()) for f in masks.flips.values())
    assert all(f.any() for f in masks.flips.values())


def test_flips_are_of_kept_weights() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    masks = Masks({"w": mask}, {"w": torch.tensor([[True, False], [False, False]])})
    assert (masks.kept, masks.flipped, masks.density) == (3, 1, 0.75)
    assert Masks({"w": mask}, {"w": torch.zeros(2, 2, dtype=torch.bool)}).flips == {}
    for name, flip in (("w", ~mask), ("w", mask.reshape(-1)), ("other", mask)):
        with pytest.raises(ValueError, match="not among its kept weights"):
            Masks({"w": mask}, {name: flip})
    with pytest.raises(TypeError, match=r"torch\.bool"):
        Masks({"w": mask}, {"w": mask.float()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gain", [1.0, 1.3])
def test_a_flipped_weight_is_minus_the_unflipped_one_to_the_bit(
    dtype: torch.dtype, gain: float
) -> None:
    weight = torch.tensor([1.5, -0.0, 0.3, -3e-5, 7.0, float("inf")]).to(dtype)
    mask = torch.tensor([True, True, True, True, False, True])
    flip = torch.tensor([True, True, False, True, False, True])
    plain = masked_weight(weight, mask, gain)
    found = masked_weight(weight, mask, gain, flip)
    assert torch.equal(found, torch.where(flip, -plain, plain))
    assert found.signbit().tolist() == [True, False, False, False, False, True]


def test_only_the_shuffled_control_has_flips_and_they_move_with_the_mask() -> None:
    masks = binarize_signed({"w": scores_of(), "v": scores_of(3)}, Budget(density=0.3))
    plain = Masks(dict(masks))
    weights = {name: scores_of(7) for name in masks}
    signed, unsigned = (
        dict(control_masks(m, weights, 11, dict.fromkeys(weights, ELEMENTWISE)))
        for m in (masks, plain)
    )
    for name, control in signed.items():
        assert dict(control).keys() == dict(unsigned[name]).keys()
        assert all(torch.equal(control[n], unsigned[name][n]) for n in control)
        assert bool(control.flips) == (name == "shuffled")
    for name, flip in signed["shuffled"].flips.items():
        assert torch.equal(flip.sum(1), masks.flips[name].sum(1))
        assert not torch.equal(flip, masks.flips[name])


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory) -> Ticket:
    recipe = parse_recipe(
        {"init": "random", "target_sparsity": 0.9, "method": FRESH,
         "training": {"steps": 25, "lr": 0.03, "ema": 0.0}, "evaluation": {"limit": 60}}
    )  # fmt: skip
    path = tmp_path_factory.mktemp("signed") / "ticket"
    return slt_compress.search("lenet-300-100", "digits", recipe=recipe, out=path)


def failed(verification: Verification) -> list[str]:
    return [check.name for check in verification.checks if not check.ok]


def verify(path: Path, **options: Any) -> Verification:
    return slt_compress.verify(path, in_process=True, **options)


def test_a_signed_ticket_counts_its_flips_beside_the_exact_budget(ticket: Ticket) -> None:
    masks = ticket.masks
    assert masks.kept == 26_620
    assert 0 < masks.flipped < masks.kept
    assert ticket.version == 2
    assert ticket.counts.flips == masks.flipped
    report = slt_compress.report(ticket.path)
    assert report.sparsity["flips"] == masks.flipped
    assert report.sparsity["achieved"] == 0.9
    assert sum(layer["flips"] for layer in report.layers) == masks.flipped
    card = (ticket.path / "README.md").read_text()
    assert f"Flips: {masks.flipped:,} of the 26,620 kept weights have their sign flipped." in card
    stored = load_file(ticket.path / "masks.safetensors")
    for name, flip in masks.flips.items():
        assert torch.equal(unpack_bits(stored[f"{name}.flip"], tuple(flip.shape)), flip)


@pytest.mark.parametrize("format", ["dense", "sparse-csr"])
def test_an_export_carries_the_flips_and_is_proved(
    ticket: Ticket, format: str, tmp_path: Path
) -> None:
    path = slt_compress.export(ticket.path, format=format, out=tmp_path / "a").path
    assert failed(verify(path, origin=ticket.path)) == []
    found = verify(path)
    assert failed(found) == []
    assert f"({ticket.masks.flipped:,} with their sign flipped)" in str(found.to_dict())
    model, exported = slt_compress.load(ticket.path), slt_compress.load(path)
    for name, value in model.state_dict().items():
        assert torch.equal(value, exported.state_dict()[name]), name
    assert f"Flips: {ticket.masks.flipped:,} of" in (path / "README.md").read_text()
    assert slt_compress.evaluate(path)["metrics"] == ticket.metrics["hard"]
    assert failed(verify(ticket.path)) == []


def test_an_export_with_another_flip_is_not_the_ticket(ticket: Ticket, tmp_path: Path) -> None:
    path = slt_compress.export(ticket.path, out=tmp_path / "a").path
    tensors = load_file(path / "model.safetensors")
    weight = tensors["fc3.weight"]
    row, column = ticket.masks["fc3.weight"].nonzero()[0].tolist()
    weight[row, column] *= -1
    save_file(tensors, path / "model.safetensors")
    manifest = json.loads((path / "slt.json").read_text())
    manifest["files"]["model.safetensors"] = sha256_file(path / "model.safetensors")
    (path / "slt.json").write_text(json.dumps(manifest))
    assert "weights" in failed(verify(path, origin=ticket.path))


def test_an_unsigned_search_writes_version_1(ticket: Ticket, tmp_path: Path) -> None:
    recipe = parse_recipe(
        {"init": "random", "method": "random", "evaluation": {"limit": 20}, "dataset": "digits"}
    )
    plain = slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "t")
    assert plain.version == 1
    assert plain.counts.to_dict().keys() == {"kept", "gated", "parameters"}
    assert slt_compress.report(plain.path).sparsity["flips"] == 0
    assert "lips" not in (plain.path / "README.md").read_text()


def damaged_copy(ticket: Ticket, path: Path, change: Any) -> Path:
    """A copy of a ticket after `change(tensors, manifest)`, under a hash that fits."""
    path.mkdir()
    for file in ticket.path.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(path / "masks.safetensors")
    manifest = json.loads((path / "ticket.json").read_text())
    change(tensors, manifest)
    save_file(tensors, path / "masks.safetensors")
    manifest["files"]["masks.safetensors"] = sha256_file(path / "masks.safetensors")
    (path / "ticket.json").write_text(json.dumps(manifest))
    return path


FC1 = "fc1.weight"
DAMAGE = {
    "a lost bitmap": lambda t, m: t.pop(f"{FC1}.flip"),
    "a bitmap of no site": lambda t, m: t.update({"x.flip": t[f"{FC1}.flip"].clone()}),
    "another count": lambda t, m: m["sites"][FC1].update(flips=1),
    "a count that is text": lambda t, m: m["sites"][FC1].update(flips="many"),
    "no count": lambda t, m: m["sites"][FC1].pop("flips"),
    "another sum": lambda t, m: m["counts"].update(flips=1),
    "no sum": lambda t, m: m["counts"].pop("flips"),
    "a dropped weight is flipped": lambda t, m: t[f"{FC1}.flip"].fill_(255),
    "another length": lambda t, m: t.update({f"{FC1}.flip": t[f"{FC1}.flip"][:-1].clone()}),
    "an older version": lambda t, m: m.update(version=1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_flips_that_lie_are_refused(ticket: Ticket, tmp_path: Path, damage: str) -> None:
    whole = damaged_copy(ticket, tmp_path / "whole", lambda t, m: None)
    assert read_ticket(whole).masks.flipped == ticket.masks.flipped
    with pytest.raises(TicketError, match="damaged"):
        read_ticket(damaged_copy(ticket, tmp_path / "t", DAMAGE[damage]))


def test_a_pretrained_search_starts_from_all_kept_signs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(20, 10)
    batches = [torch.randn(16, 20) for _ in range(6)]
    goal = module.weight.detach() * torch.where(torch.rand(10, 20) < 0.1, -1.0, 1.0)

    def loss_fn(model: torch.nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - batch @ goal.T).square().mean()

    found = slt_compress.search(
        module, batches, loss_fn=loss_fn, budget=Budget(density=0.9),
        method=Relaxed(signed=True, prior_spread=2.0), out=tmp_path / "t",
        training=slt_compress.Training(steps=300, lr=0.1),
    )  # fmt: skip
    wanted = (goal.sign() != module.weight.sign()) & found.masks["weight"]
    flip = found.masks.flips["weight"]
    assert 0 < int(flip.sum()) <= int(wanted.sum()) + 5
    assert float((flip & wanted).sum() / flip.sum()) > 0.8
    assert failed(verify(found.path, model=module)) == []
