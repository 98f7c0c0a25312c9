"""`relaxed` with a penalty: the founding paper's own objective."""

from __future__ import annotations

from math import exp, pi, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from data_sets import ready
from torch import Tensor, nn

import slt_compress
from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import RecipeError
from slt_compress.gates import METHODS, Phase, Relaxed, Sample
from slt_compress.searching.training import Training
from slt_compress.sites.budget import Budget
from slt_compress.tickets import read_history, read_scores

PHASE = Phase(step=0, seed=0)


def density(value: float) -> float:
    return exp(-(value**2) / 2) / sqrt(2 * pi)


@pytest.mark.parametrize("sigma", [0.5, 0.25])
@pytest.mark.parametrize("weight", [0.0, 0.02, 3.0])
def test_its_gradient_is_the_closed_form(sigma: float, weight: float) -> None:
    scores = {
        "a": torch.linspace(-1, 2, 7, dtype=torch.float64).requires_grad_(),
        "b": torch.zeros(2, 2, dtype=torch.float64).requires_grad_(),
    }
    penalty = Relaxed(penalty=weight, sigma=sigma).penalty_of(scores, PHASE)
    assert penalty is not None
    penalty.backward()
    for score in scores.values():
        assert score.grad is not None
        expected = [weight * density(mu / sigma) / sigma for mu in score.reshape(-1).tolist()]
        assert score.grad.reshape(-1).tolist() == pytest.approx(expected, abs=1e-12)
    # a sum over all gates: four at mu = 0 weigh 1/2 each
    only = Relaxed(penalty=weight, sigma=sigma).penalty_of({"b": scores["b"]}, PHASE)
    assert float(only.detach()) == pytest.approx(2.0 * weight)


@pytest.mark.parametrize("name", [n for n in METHODS if hasattr(METHODS[n], "penalty_of")])
def test_no_method_has_a_penalty_by_default(name: str) -> None:
    assert METHODS[name]().penalty_of({"w": torch.zeros(3)}, PHASE) is None
    assert METHODS[name]().rescales


@pytest.mark.parametrize("phase", [{}, {"hard": True}, {"annealed": 1.0}])
@pytest.mark.parametrize("noise", [False, True])
def test_its_gate_is_the_papers_in_every_phase(phase: dict[str, Any], noise: bool) -> None:
    method = Relaxed(penalty=0.1, sigma=0.4)
    mu = torch.randn(30, 20).add(0.5).requires_grad_()
    weight, upstream = torch.randn(30, 20), torch.randn(30, 20)
    found = Phase(step=4, seed=2, noise=noise, **phase)
    shifts = method.shifts({"w": mu.detach()}, Budget(density=0.01), 0.01, found, {"w": 9.0})
    assert shifts == {"w": 0.0}
    sample = Sample(phase=found, shift=shifts["w"], key=6, rescale=False)
    eps = torch.empty(30, 20).normal_(generator=torch.Generator().manual_seed(6))
    inner = mu.detach() + (0.4 * eps if noise else 0.0)
    effective = method.effective(mu, weight, sample)
    assert torch.allclose(effective, inner.clamp(0, 1) * weight, atol=1e-6)
    effective.backward(upstream)
    assert mu.grad is not None
    expected = torch.where((inner > 0) & (inner < 1), upstream * weight, 0.0)
    assert torch.allclose(mu.grad, expected, atol=1e-6)


def test_its_scores_start_around_mu0_unless_a_prior_orders_them() -> None:
    zeros = torch.zeros(100, 100)
    start = Relaxed(penalty=0.1, mu0=-0.25).start(zeros, None, 1)
    assert float(start.mean()) == pytest.approx(-0.25, abs=1e-3)
    prior = torch.rand(100, 100)
    with_prior = [Relaxed(penalty=p, mu0=2.0).start(zeros, prior, 1) for p in (0.1, None)]
    assert torch.equal(*with_prior)
    assert float(Relaxed(mu0=2.0).start(zeros, None, 1).mean()) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "options", [{"penalty": -1.0}, {"penalty": float("nan")}, {"penalty": float("inf")},
                {"penalty": 0.1, "signed": True}]
)  # fmt: skip
def test_a_penalty_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"method\.penalty"):
        Relaxed(**options)


def searched(penalty: float | None, path: Path) -> slt_compress.Ticket:
    recipe = slt_compress.Recipe(init="random", save_scores=True)
    return slt_compress.search(
        "lenet-300-100", "digits", recipe=recipe, method=Relaxed(penalty=penalty),
        budget=Budget(density=0.3), training=Training(steps=30, lr=0.05), out=path,
    )  # fmt: skip


def accuracy_of_gates(scores: dict[str, Tensor]) -> float:
    """Test accuracy of the random net with every weight times its gate, clamp(mu, 0, 1)."""
    checkpoint = open_checkpoint("lenet-300-100", init="random", num_classes=10)
    with torch.no_grad():
        for name, score in scores.items():
            checkpoint.module.get_parameter(name).mul_(score.clamp(0.0, 1.0))
    test = ready("digits", checkpoint).test
    right = total = 0
    for batch in test:
        chosen = checkpoint.module(batch["pixel_values"]).argmax(-1)
        right += int((chosen == batch["labels"]).sum())
        total += len(chosen)
    return right / total


def test_a_larger_penalty_closes_more_gates_and_the_mask_keeps_its_count(tmp_path: Path) -> None:
    closed = []
    for penalty in (0.0, 1e-3):
        ticket = searched(penalty, tmp_path / str(penalty))
        scores = read_scores(ticket.path)
        closed.append(sum(int((score <= 0).sum()) for score in scores.values()))
        assert ticket.masks.kept == round(0.3 * ticket.masks.total)
        assert ticket.gains == {}
        assert ticket.metrics["soft"]["accuracy"] == accuracy_of_gates(scores)
        assert slt_compress.verify(ticket.path, in_process=True).ok
    assert closed[1] > 2 * closed[0]


def test_the_loss_in_the_history_is_the_tasks(tmp_path: Path) -> None:
    module = nn.Linear(4, 3)

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    ticket = slt_compress.search(
        module, [torch.randn(5, 4)], loss_fn=loss_fn, budget=Budget(density=0.5),
        method=Relaxed(penalty=1e6), training=Training(steps=3), out=tmp_path / "t",
    )  # fmt: skip
    assert all(step["loss"] < 100 for step in read_history(ticket.path))
