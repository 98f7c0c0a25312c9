"""Kind K: heads that are no softmax are distilled and measured by what they are."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pico
import pytest
import torch
import torch.nn.functional as F
import transformers
from data_sets import ready, write_table
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import slt_compress
from slt_compress import Recipe, Training
from slt_compress.checkpoints import Checkpoint, open_checkpoint
from slt_compress.evidence.head_losses import head_divergence, head_loss
from slt_compress.evidence.head_metrics import average_precision, correlation, ranks
from slt_compress.evidence.metrics import evaluate

ROWS = 24


def bert(folder: Path, outputs: int, problem: str | None) -> Checkpoint:
    folder = pico.save_bert(folder, num_labels=outputs, problem_type=problem)
    return open_checkpoint(folder)


def table(folder: Path, labels: list[Any]) -> Path:
    texts = [" ".join(np.random.default_rng(n).choice(pico.WORDS, 4)) for n in range(len(labels))]
    return write_table(folder / "train.parquet", {"text": texts, "labels": labels})


def flags(count: int = 3) -> list[list[int]]:
    return np.random.default_rng(0).integers(0, 2, (ROWS, count)).tolist()


def numbers(count: int = 3) -> list[list[float]]:
    return np.random.default_rng(0).normal(size=(ROWS, count)).tolist()


SHORT = Recipe(training=Training(steps=3, batch_size=4, device="cpu", selections=1))
KINDS: dict[str, tuple[int, str | None, Any, set[str]]] = {
    "flags": (3, "multi_label_classification", flags, {"f1", "map", "loss", "agreement", "kl"}),
    "undeclared flags": (3, None, flags, {"f1", "map", "loss", "agreement", "kl"}),
    "numbers": (3, "regression", numbers, {"pearson", "spearman", "loss"}),
    "one number": (1, None, lambda: [row[0] for row in numbers()], {"pearson", "spearman", "loss"}),
    "classes": (2, None, lambda: [n % 2 for n in range(ROWS)],
                {"accuracy", "loss", "agreement", "kl"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_measures_what_the_head_is(tmp_path: Path, kind: str) -> None:
    outputs, problem, labels, metrics = KINDS[kind]
    model = bert(tmp_path / "bert", outputs, problem)
    data = table(tmp_path / "set", labels())
    assert ready(data, model).labels_match
    ticket = slt_compress.search(tmp_path / "bert", str(data), recipe=SHORT, out=tmp_path / "t")
    report = slt_compress.report(ticket.path)
    assert set(report.metrics["hard"]) == metrics
    slt_compress.verify(ticket.path)
    assert set(slt_compress.evaluate(ticket.path, str(data))["metrics"]) <= metrics


@pytest.mark.parametrize("kind", ["flags", "numbers"])
def test_without_labels_the_dense_outputs_are_the_measure(tmp_path: Path, kind: str) -> None:
    outputs, problem, _, metrics = KINDS[kind]
    bert(tmp_path / "bert", outputs, problem)
    data = table(tmp_path / "set", ["x"] * ROWS)
    ticket = slt_compress.search(tmp_path / "bert", str(data), recipe=SHORT, out=tmp_path / "t")
    wanted = {"agreement", "kl"} if kind == "flags" else metrics
    assert set(slt_compress.report(ticket.path).metrics["hard"]) == wanted


@pytest.mark.parametrize("labels", [flags(), numbers()], ids=["flags", "numbers"])
def test_a_random_init_takes_the_head_of_its_labels(tmp_path: Path, labels: list[Any]) -> None:
    bert(tmp_path / "bert", 2, None)
    recipe = Recipe(init="random", training=SHORT.training)
    ticket = slt_compress.search(
        tmp_path / "bert", str(table(tmp_path / "set", labels)), recipe=recipe, out=tmp_path / "t"
    )
    problem = ticket.origin["config"]["problem_type"]
    known = {"multi_label_classification": "f1", "regression": "spearman"}
    assert known[problem] in slt_compress.report(ticket.path).metrics["hard"]


NAMED: list[list[str]] = [["b"], ["a", "c"], [], ["c"], ["a", "b", "c"], ["b"]] * 2


def test_lists_of_names_and_numbers_are_flags_in_the_order_of_the_head(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        **pico.SMALL, **pico.TEXT, intermediate_size=32, id2label={0: "c", 1: "a", 2: "b"},
        problem_type="multi_label_classification",
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    model = open_checkpoint(pico.save_tokenizer(tmp_path / "bert"))
    data = ready(table(tmp_path / "set", NAMED), model, batch_size=20)
    rows = torch.cat([b["labels"] for b in (*data.train.epoch(0), *data.held_out, *data.test)])
    expected = [[float(name in row) for name in "cab"] for row in NAMED]
    assert sorted(rows.tolist()) == sorted(expected)


def test_labels_of_another_kind_are_not_used(tmp_path: Path) -> None:
    model = bert(tmp_path / "bert", 3, "multi_label_classification")
    single = ready(table(tmp_path / "a", [n % 3 for n in range(ROWS)]), model)
    assert "the labels are classes and the model has 3 outputs for several" in single.label_note
    plain = bert(tmp_path / "plain", 3, "single_label_classification")
    assert not ready(table(tmp_path / "b", flags()), plain).labels_match


# ---------------------------------------------------------------- losses and metrics themselves


def test_losses_are_those_of_torch() -> None:
    torch.manual_seed(0)
    out, dense, labels = torch.randn(5, 3), torch.randn(5, 3), (torch.rand(5, 3) > 0.5).float()
    wanted = F.binary_cross_entropy_with_logits(out, labels)
    assert torch.allclose(head_loss("flags", out, labels), wanted)
    assert torch.allclose(head_loss("numbers", out, dense), F.mse_loss(out, dense))
    p, q = torch.distributions.Bernoulli(logits=dense), torch.distributions.Bernoulli(logits=out)
    kl = torch.distributions.kl_divergence(p, q).mean()
    assert torch.allclose(head_divergence("flags", out, dense), kl, atol=1e-6)
    assert float(head_divergence("flags", dense, dense)) == pytest.approx(0.0, abs=1e-6)
    assert torch.allclose(head_divergence("numbers", out, dense), F.mse_loss(out, dense))


@pytest.mark.parametrize("head", ["classes", "flags", "numbers"])
def test_a_batch_without_labels_pulls_nowhere(head: Any) -> None:
    out = torch.randn(0, 3, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64) if head == "classes" else torch.zeros(0, 3)
    for value in (head_loss(head, out, labels), head_divergence(head, out, out.detach())):
        assert value.detach().item() == 0.0
        value.backward()


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=2,
                max_size=12))  # fmt: skip
def test_average_precision_is_the_area_under_the_steps(rows: list[tuple[float, bool]]) -> None:
    if not any(given for _, given in rows):
        return
    expected, recall = 0.0, 0.0
    total = sum(given for _, given in rows)
    for threshold in sorted({score for score, _ in rows}, reverse=True):
        taken = [given for score, given in rows if score >= threshold]
        expected += (sum(taken) / total - recall) * sum(taken) / len(taken)
        recall = sum(taken) / total
    scores, labels = zip(*rows, strict=True)
    assert average_precision(torch.tensor(scores), torch.tensor(labels)) == pytest.approx(expected)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=9))
def test_ranks_of_equal_values_are_their_mean(values: list[int]) -> None:
    expected = [
        sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values
    ]
    assert ranks(torch.tensor(values)).tolist() == expected


def test_correlations_know_order_and_line() -> None:
    x = torch.arange(6).double()
    assert correlation(x, 3 * x + 1) == pytest.approx(1.0)
    assert correlation(x, -x) == pytest.approx(-1.0)
    assert correlation(ranks(x), ranks(x.exp())) == pytest.approx(1.0)
    assert correlation(x, torch.ones(6).double()) == 0.0


class Given(nn.Module):
    """Answers with the logits of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def measured(outputs: Tensor, labels: Tensor | None, head: Any) -> dict[str, float]:
    batch = {"outputs": outputs} | ({} if labels is None else {"labels": labels})
    return evaluate(
        Given(), [batch], lambda module, given: given["outputs"], "text-classification",
        reference=nullcontext, head=head,
    )  # fmt: skip


def test_metrics_that_cannot_vary_are_not_shown() -> None:
    out = torch.randn(6, 1)
    assert "agreement" not in measured(out, None, "classes")
    assert "agreement" not in measured(out, None, "numbers")
    assert set(measured(out, torch.ones(6), "numbers")) == {"loss"}
    none = measured(torch.randn(6, 3), torch.zeros(6, 3), "flags")
    assert not {"f1", "map"} & set(none)
    always = measured(torch.randn(6, 3), torch.ones(6, 3), "flags")
    assert "map" not in always
