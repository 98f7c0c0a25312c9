"""Evaluation: metrics computed by hand, BatchNorm statistics, and the control masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import exp, sqrt

import pytest
import torch
from models import conv_net
from torch import Tensor, nn

from slt_compress.checkpoints.tasks import forward_of
from slt_compress.evidence.losses import divergence, label_loss, relative_error
from slt_compress.evidence.metrics import evaluate, evaluating, reestimate_batchnorm

PIXELS = forward_of("timm", "image-classification")


class Echo(nn.Module):
    """Gives its input times a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, values: Tensor) -> Tensor:
        return values * self.scale


def test_accuracy_and_loss_weigh_every_example_alike() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    batches = [
        {"pixel_values": logits[:1], "labels": labels[:1]},
        {"pixel_values": logits[1:], "labels": labels[1:]},
    ]
    metrics = evaluate(Echo(), batches, PIXELS, "image-classification")
    assert metrics == {
        "accuracy": pytest.approx(1 / 3),
        "loss": pytest.approx(float(label_loss(logits, labels))),
    }


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "seq2seq"])
def test_perplexity_is_of_the_known_tokens(task: str) -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, -100, 4, 5], [-100, 0, 6, 3, -100]])
    batches = [{"pixel_values": logits[i : i + 1], "labels": labels[i : i + 1]} for i in range(2)]
    terms = []
    for row in range(2):
        for position in range(5):
            label = int(labels[row, position])
            predicted = position - (task == "causal-lm")
            if label != -100 and predicted >= 0:
                terms.append(-float(torch.log_softmax(logits[row, predicted], -1)[label]))
    metrics = evaluate(Echo(), batches, PIXELS, task)
    mean = sum(terms) / len(terms)
    assert metrics["loss"] == pytest.approx(mean, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(exp(mean), rel=1e-5)
    assert ("accuracy" in metrics) == (task == "masked-lm")


def test_a_hopeless_perplexity_is_still_a_number() -> None:
    batch = {"pixel_values": torch.tensor([[[0.0, 1e4]]]), "labels": torch.tensor([[0]])}
    assert evaluate(Echo(), [batch], PIXELS, "masked-lm")["perplexity"] == exp(700.0)


def test_pearson_of_a_regression() -> None:
    predicted, wanted = [1.0, 2.0, 4.0, 3.0], [1.0, 3.0, 3.5, 2.5]
    batches = [
        {"pixel_values": torch.tensor(predicted[i : i + 2])[:, None],
         "labels": torch.tensor(wanted[i : i + 2])}
        for i in (0, 2)
    ]  # fmt: skip
    a, b = (torch.tensor(x).double() - sum(x) / 4 for x in (predicted, wanted))
    expected = float((a * b).sum()) / sqrt(float((a * a).sum() * (b * b).sum()))
    metrics = evaluate(Echo(), batches, PIXELS, "text-classification", reference=unscaled(Echo()))
    assert metrics == {
        "pearson": pytest.approx(expected),
        "loss": pytest.approx((0 + 1 + 0.25 + 0.25) / 4),
    }
    constant = [{"pixel_values": torch.ones(3, 1), "labels": torch.tensor([1.0, 2.0, 3.0])}]
    assert evaluate(Echo(), constant, PIXELS, "text-classification")["pearson"] == 0.0


def unscaled(module: Echo) -> object:
    @contextmanager
    def context() -> Iterator[None]:
        before = module.scale.detach().clone()
        with torch.no_grad():
            module.scale.fill_(1.0)
            yield
            module.scale.copy_(before)

    return context


def test_agreement_and_kl_are_against_the_dense_rows() -> None:
    module = Echo()
    with torch.no_grad():
        module.scale.fill_(-1.0)
    logits = torch.tensor([[2.0, 0.0], [0.5, 0.5], [0.0, 3.0]])
    batches = [{"pixel_values": logits[:2]}, {"pixel_values": logits[2:]}]
    metrics = evaluate(module, batches, PIXELS, "image-classification", reference=unscaled(module))
    expected = float(divergence(-logits, logits))
    assert metrics == {"agreement": pytest.approx(1 / 3), "kl": pytest.approx(expected)}
    assert float(module.scale.detach()) == -1.0


def test_features_are_compared_by_their_relative_error() -> None:
    module = Echo()
    with torch.no_grad():
        module.scale.fill_(0.5)
    hidden = torch.randn(2, 3, 4)
    batches = [{"pixel_values": hidden}]
    metrics = evaluate(module, batches, PIXELS, "features", reference=unscaled(module))
    assert metrics == {"loss": pytest.approx(float(relative_error(0.5 * hidden, hidden)))}


def test_nothing_is_measured_without_labels_and_reference() -> None:
    assert evaluate(Echo(), [{"pixel_values": torch.ones(1, 2)}], PIXELS, "features") == {}


def fail_unless_in_eval_mode(module: nn.Module) -> None:
    assert not module.training
    raise ZeroDivisionError


def test_measuring_takes_no_gradients_and_gives_the_modes_back() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9), nn.Linear(2, 2))
    module[2].eval()
    seen: list[tuple[bool, bool]] = []
    module[1].register_forward_pre_hook(
        lambda m, _: seen.append((m.training, torch.is_grad_enabled()))
    )
    batch = {"pixel_values": torch.ones(1, 2), "labels": torch.zeros(1, dtype=torch.int64)}
    evaluate(module, [batch], PIXELS, "image-classification")
    assert seen == [(False, False)]
    assert [child.training for child in module] == [True, True, False]
    with pytest.raises(ZeroDivisionError), evaluating(module):
        fail_unless_in_eval_mode(module)
    assert [child.training for child in module] == [True, True, False]


class Caching(nn.Module):
    """Keeps a table from its first forward, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.table: Tensor | None = None

    def forward(self, values: Tensor) -> Tensor:
        if self.table is None:
            self.table = values.cos()
        return values * self.weight * self.table


def test_a_table_cached_while_measuring_can_be_trained_with() -> None:
    module = Caching()
    evaluate(module, [{"pixel_values": torch.ones(1, 2)}], PIXELS, "image-classification")
    module(torch.ones(1, 2)).sum().backward()
    assert module.weight.grad is not None


def test_batchnorm_statistics_are_the_mean_over_batches() -> None:
    pico = conv_net()
    pico.module.norm.num_batches_tracked.fill_(50)
    batches = [torch.randn(4, 3, 6, 6) for _ in range(3)]
    inputs = [pico.module.first(batch).detach() for batch in batches]
    found = reestimate_batchnorm(pico.module, batches, lambda m, b: m(b))
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variances = torch.stack([x.var((0, 2, 3), unbiased=True) for x in inputs]).mean(0)
    assert sorted(found) == ["norm.num_batches_tracked", "norm.running_mean", "norm.running_var"]
    assert torch.allclose(found["norm.running_mean"], means, atol=1e-6)
    assert torch.allclose(found["norm.running_var"], variances, atol=1e-6)
    assert int(found["norm.num_batches_tracked"]) == 3
    assert torch.equal(found["norm.running_mean"], pico.module.norm.running_mean)
    assert pico.module.norm.momentum == 0.1
    assert not any(child.training for child in pico.module.modules())


def test_at_most_so_many_batches_are_used() -> None:
    pico = conv_net()
    found = reestimate_batchnorm(
        pico.module, iter([torch.randn(2, 3, 6, 6)] * 9), lambda m, b: m(b), limit=2
    )
    assert int(found["norm.num_batches_tracked"]) == 2


def test_the_momentum_comes_back_where_a_batch_fails() -> None:
    pico = conv_net()
    with pytest.raises(RuntimeError):
        reestimate_batchnorm(pico.module, [torch.randn(2, 5, 6, 6)], lambda m, b: m(b))
    assert pico.module.norm.momentum == 0.1


def test_a_module_without_statistics_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert reestimate_batchnorm(module, [torch.ones(3, 2)], lambda m, b: m(b)) == {}
