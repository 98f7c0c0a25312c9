"""Objectives: losses computed by hand, rows of every task, and what a family is called with."""

from __future__ import annotations

from math import log
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slt_compress.anatomy.blocks import block_names, capture_outputs
from slt_compress.checkpoints.reference import CifarResNet
from slt_compress.checkpoints.tasks import forward_of, rows, to_device
from slt_compress.errors import RecipeError
from slt_compress.evidence.losses import divergence, label_loss, relative_error
from slt_compress.searching.objectives import (
    Answer,
    ObjectiveOptions,
    distill_objective,
    own_objective,
    task_objective,
)

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0]])
LABELS = torch.tensor([0, 2])


def by_hand(logits: Tensor, labels: Tensor) -> float:
    terms = [
        log(sum(torch.exp(row - row[label]).tolist()))
        for row, label in zip(logits.double(), labels.tolist(), strict=True)
    ]
    return sum(terms) / len(terms)


class Given(nn.Module):
    """Gives its parameter, whatever it is called with, the way a library does."""

    def __init__(self, output: Tensor, style: str = "tensor") -> None:
        super().__init__()
        self.output = nn.Parameter(output)
        self.style = style
        self.called: dict[str, Tensor] = {}

    def forward(self, pixel_values: Tensor | None = None, **inputs: Tensor) -> object:
        self.called = inputs
        if self.style == "logits":
            return SimpleNamespace(logits=self.output)
        return (self.output,) if self.style == "tuple" else self.output


def test_cross_entropy_by_hand() -> None:
    assert float(label_loss(LOGITS, LABELS)) == pytest.approx(by_hand(LOGITS, LABELS))


def test_label_smoothing_by_hand() -> None:
    uniform = sum(by_hand(LOGITS, torch.full((2,), c)) for c in range(3)) / 3
    expected = 0.7 * by_hand(LOGITS, LABELS) + 0.3 * uniform
    assert float(label_loss(LOGITS, LABELS, 0.3)) == pytest.approx(expected)


def test_float_labels_give_a_squared_error() -> None:
    found = label_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0]))
    assert float(found) == (1 + 4) / 2


def test_divergence_by_hand() -> None:
    teacher = torch.tensor([[0.0, 3.0, 1.0], [-1.0, 0.5, 4.0]])
    for temperature in (1.0, 4.0):
        p, q = (torch.softmax(x.double() / temperature, -1) for x in (teacher, LOGITS))
        expected = float((p * (p / q).log()).sum(-1).mean()) * temperature**2
        assert float(divergence(LOGITS, teacher, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(divergence(LOGITS, LOGITS)) == pytest.approx(0.0, abs=1e-7)
    single = divergence(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
    assert float(single) == 2.0


def test_half_precision_is_summed_in_fp32() -> None:
    half = (LOGITS * 30).to(torch.bfloat16)
    assert label_loss(half, LABELS).dtype is torch.float32
    assert divergence(half, half).dtype is torch.float32
    assert relative_error(half, half).dtype is torch.float32


def test_relative_error_by_hand() -> None:
    found = relative_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
    assert float(found) == 2.0
    assert float(relative_error(torch.zeros(2), torch.zeros(2))) == 0.0


def test_a_causal_model_predicts_the_next_token() -> None:
    logits = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    labels = torch.tensor([[0, 1, -100, 2], [2, -100, 1, 0]])
    kept, known = rows("causal-lm", logits, labels)
    assert known is not None
    assert known.tolist() == [1, 2, 1, 0]
    assert torch.equal(kept, torch.stack([logits[0, 0], logits[0, 2], logits[1, 1], logits[1, 2]]))


@pytest.mark.parametrize("task", ["masked-lm", "seq2seq", "token-classification"])
def test_other_models_predict_the_token_itself(task: str) -> None:
    logits = torch.arange(2 * 2 * 3.0).reshape(2, 2, 3)
    kept, known = rows(task, logits, torch.tensor([[1, -100], [-100, 2]]))
    assert known is not None
    assert known.tolist() == [1, 2]
    assert torch.equal(kept, torch.stack([logits[0, 0], logits[1, 1]]))


def test_rows_without_labels_or_of_a_regression_are_all_there() -> None:
    sequence = torch.zeros(2, 4, 3)
    assert rows("causal-lm", sequence, None)[0].shape == (8, 3)
    kept, known = rows("text-classification", torch.zeros(3, 1), torch.zeros(3))
    assert kept.shape == (3, 1)
    assert known is not None
    assert known.dtype is torch.float32


def test_the_task_objective_watches_the_share_of_right_rows() -> None:
    module = Given(LOGITS)
    objective = task_objective(forward_of("timm", "image-classification"), "image-classification")
    batch = {"pixel_values": torch.zeros(2), "labels": LABELS}
    outcome = objective.loss(module, batch, None)
    assert objective.target is None
    assert outcome.metric == 0.5
    assert outcome.loss.item() == pytest.approx(by_hand(LOGITS, LABELS))
    outcome.loss.backward()
    assert module.output.grad is not None
    assert module.output.grad.any()


def test_the_task_objective_smooths_labels() -> None:
    forward = forward_of("timm", "image-classification")
    objective = task_objective(forward, "image-classification", label_smoothing=0.3)
    batch = {"pixel_values": torch.zeros(2), "labels": LABELS}
    found = objective.loss(Given(LOGITS), batch, None).loss.item()
    assert found == pytest.approx(float(label_loss(LOGITS, LABELS, 0.3)))


def test_the_task_objective_of_a_regression_has_no_metric() -> None:
    objective = task_objective(forward_of("timm", "text-classification"), "text-classification")
    batch = {"pixel_values": torch.zeros(2), "labels": torch.tensor([1.0, 2.0])}
    outcome = objective.loss(Given(torch.tensor([[1.0], [4.0]])), batch, None)
    assert outcome.metric is None
    assert outcome.loss.item() == 2.0


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_distillation_mixes_in_the_labels(weight: float) -> None:
    forward = forward_of("timm", "image-classification")
    teacher = LOGITS.flip(0)
    objective = distill_objective(
        forward, "image-classification", temperature=3.0, label_weight=weight
    )
    batch = {"pixel_values": torch.zeros(2), "labels": LABELS}
    outcome = objective.loss(Given(LOGITS), batch, Answer(teacher, {}))
    expected = (1 - weight) * float(divergence(LOGITS, teacher, 3.0))
    expected += weight * by_hand(LOGITS, LABELS)
    assert objective.target is not None
    assert torch.equal(objective.target(Given(teacher), batch).output, teacher)
    assert outcome.loss.item() == pytest.approx(expected)
    assert outcome.metric == 0.5
    unlabelled = objective.loss(
        Given(LOGITS), {"pixel_values": torch.zeros(2)}, Answer(teacher, {})
    )
    assert unlabelled.loss.item() == pytest.approx(float(divergence(LOGITS, teacher, 3.0)))
    assert unlabelled.metric == 0.0


def test_distilled_tokens_are_shifted_alike() -> None:
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    labels = torch.tensor([[0, 1, -100, 2], [2, -100, 1, 0]])
    objective = distill_objective(forward_of("timm", "causal-lm"), "causal-lm")
    outcome = objective.loss(
        Given(student), {"pixel_values": student, "labels": labels}, Answer(teacher, {})
    )
    expected = divergence(
        rows("causal-lm", student, labels)[0], rows("causal-lm", teacher, labels)[0], 2.0
    )
    assert outcome.loss.item() == pytest.approx(float(expected))


def test_features_are_distilled_by_their_relative_error() -> None:
    forward = forward_of("transformers", "features")
    objective = distill_objective(forward, "features")
    student, teacher = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    batch = {"input_ids": torch.zeros(2, 5), "labels": torch.zeros(2)}
    outcome = objective.loss(Given(student, "tuple"), batch, Answer(teacher, {}))
    assert outcome.loss.item() == pytest.approx(float(relative_error(student, teacher)))
    assert outcome.metric is None


def test_how_each_family_is_called() -> None:
    batch = {"input_ids": torch.zeros(1), "labels": torch.ones(1)}
    module = Given(LOGITS, "logits")
    assert torch.equal(forward_of("transformers", "causal-lm")(module, batch), LOGITS)
    assert list(module.called) == ["input_ids"]
    forward_of("transformers", "seq2seq")(module, batch)
    assert list(module.called) == ["input_ids", "labels"]
    module = Given(LOGITS, "tuple")
    assert torch.equal(forward_of("transformers", "features")(module, batch), LOGITS)
    assert list(module.called) == ["input_ids"]
    pixels = {"pixel_values": torch.zeros(1)}
    assert torch.equal(
        forward_of("reference", "image-classification")(Given(LOGITS), pixels), LOGITS
    )
    with pytest.raises(TypeError, match="gave tuple where a tensor was expected"):
        forward_of("timm", "image-classification")(Given(LOGITS, "tuple"), pixels)


def test_a_loss_of_the_users_own() -> None:
    objective = own_objective(lambda module, batch: module(batch).square().sum())
    outcome = objective.loss(Given(torch.tensor([3.0])), torch.zeros(1), None)
    assert outcome.loss.item() == 9.0
    assert outcome.metric is None
    assert objective.target is None


def test_nested_batches_move_to_a_device() -> None:
    batch = {"a": torch.zeros(1), "b": [torch.zeros(2), ("text", torch.zeros(3))], "c": 1}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"].is_meta
    assert moved["b"][0].is_meta
    assert moved["b"][1][0] == "text"
    assert moved["b"][1][1].is_meta
    assert moved["c"] == 1
    assert not batch["a"].is_meta


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"label_weight": 1.5},
        {"label_weight": -0.1},
        {"label_smoothing": 3.0},
        {"label_smoothing": -1.0},
    ],
)
def test_options_that_make_no_loss_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=rf"objective\.{next(iter(options))}"):
        ObjectiveOptions(**options)


def residual() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.ReLU(), nn.Linear(4, 3))


def test_blocks_are_the_outermost_repeated_modules_with_a_matrix() -> None:
    assert block_names(residual()) == ("0", "2")
    assert block_names(CifarResNet(2, 10)) == tuple(
        f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)
    )
    assert block_names(nn.Linear(3, 3)) == ()
    gated_net = residual()
    parametrize.register_parametrization(gated_net[2], "weight", nn.Identity())
    assert block_names(gated_net) == ("0", "2")


def test_hidden_states_are_caught_and_the_hooks_leave() -> None:
    module, inputs = residual(), torch.randn(2, 4)
    with capture_outputs(module, ("0", "2")) as states:
        output = module(inputs)
    assert states.keys() == {"0", "2"}
    assert torch.equal(states["2"], output)
    states.clear()
    module(inputs)
    assert not states


def test_hidden_states_are_distilled_beside_the_logits() -> None:
    module, other = residual(), residual()
    with torch.no_grad():
        other[0][0].weight.add_(0.5)
    forward, task = forward_of("reference", "image-classification"), "image-classification"
    batch = {"pixel_values": torch.randn(5, 4)}
    plain = distill_objective(forward, task)
    deep = distill_objective(forward, task, blocks=("0", "2"), hidden_weight=0.5)
    assert deep.target is not None
    answer = deep.target(other, batch)
    with torch.no_grad():
        errors = [
            relative_error(module[0](batch["pixel_values"]), answer.hidden["0"]),
            relative_error(module(batch["pixel_values"]), answer.hidden["2"]),
        ]
        expected = float(plain.loss(module, batch, answer).loss) + 0.5 * float(sum(errors)) / 2
        assert float(deep.loss(module, batch, answer).loss) == pytest.approx(expected)
    assert plain.target is not None
    assert not plain.target(other, batch).hidden
