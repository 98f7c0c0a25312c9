"""Zeros stay 0 under any optimizer, in averages and after merges, and audit says so."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from pico import save_bert
from torch import nn

import slt_compress
from slt_compress import hold_zeros
from slt_compress.errors import TicketError
from slt_compress.evidence.audit import audit_model
from slt_compress.searching.recipes import Recipe
from slt_compress.tickets.importing import import_checkpoint

STEPS = 200
pytestmark = pytest.mark.usefixtures("no_accelerator_left")
OPTIMIZERS = {
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.1),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=1e-2, momentum=0.9, nesterov=True),
    "muon": lambda ps: torch.optim.Muon([p for p in ps if p.dim() == 2], lr=1e-3),
    "adafactor": lambda ps: torch.optim.Adafactor(ps, lr=1e-3),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=1e-4, momentum=0.9),
    "transformers-adafactor": lambda ps: transformers.Adafactor(
        ps, lr=1e-3, relative_step=False, scale_parameter=False
    ),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("holding")
    save_bert(folder / "dense")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "dense")
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and ".layer." in name:
            parameter.data *= torch.rand_like(parameter) < 0.1
    model.save_pretrained(folder / "origin")
    ticket = import_checkpoint(folder / "origin", folder / "t", recipe=Recipe().to_dict())
    return folder, ticket, model.eval()


def batch(model, step):
    generator = torch.Generator().manual_seed(step)
    size = model.config.vocab_size
    ids = torch.randint(0, size, (4, 8), generator=generator)
    return {"input_ids": ids, "labels": ids[:, 0] % model.config.num_labels}


def train(model, optimizer, steps=STEPS, after=lambda: None):
    losses = []
    for step in range(steps):
        loss = model(**batch(model, step % 4)).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after()
    return losses


def lost(case, model, tmp_path):
    """The zeros that audit finds lost, and how many kept weights changed."""
    folder, _, _ = case
    model.save_pretrained(tmp_path / "now")
    totals = audit_model(tmp_path / "now", folder / "t").totals()
    assert totals["layers_found"] == totals["layers"]
    return totals["zeros_lost"], totals["kept_changed"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_zero_is_lost(case, tmp_path, name):
    model = copy.deepcopy(case[2])
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    hold_zeros(model, case[0] / "t", optimizer)
    losses = train(model, optimizer)
    zeros, changed = lost(case, model, tmp_path)
    assert zeros == 0
    assert changed > 0.5 * case[1].masks.kept
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_without_it_they_are_lost(case, tmp_path, name):
    model = copy.deepcopy(case[2])
    train(model, OPTIMIZERS[name](list(model.parameters())), steps=3)
    assert lost(case, model, tmp_path)[0] > 0


def test_an_optimizer_with_a_past_forgets_it(case, tmp_path):
    """Moments of before the pruning would move masked weights although their gradient is 0."""
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(case[0] / "dense")
    optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-3)
    train(dense, optimizer, steps=5)
    hold_zeros(dense, case[1], optimizer)
    assert lost(case, dense, tmp_path)[0] == 0
    for name, parameter in dense.named_parameters():
        if name in case[1].masks:
            dropped = ~case[1].masks[name]
            assert not optimizer.state[parameter]["exp_avg"][dropped].any()
            assert not optimizer.state[parameter]["exp_avg_sq"][dropped].any()
    train(dense, optimizer, steps=5)
    assert lost(case, dense, tmp_path)[0] == 0


def test_gradients_are_zero_where_nothing_is_kept(case):
    model = copy.deepcopy(case[2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hold_zeros(model, case[1], optimizer)
    for step in range(2):  # and where they add up
        model(**batch(model, step)).loss.backward()
    for name, parameter in model.named_parameters():
        if name in case[1].masks:
            assert not parameter.grad[~case[1].masks[name]].any()
            assert parameter.grad.any()


@pytest.mark.parametrize("built", ["before", "after"])
def test_averages_of_weights(case, tmp_path, built):
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(case[0] / "dense")
    average = copy.deepcopy(dense)  # as ModelEmaV3 is built
    optimizer = torch.optim.AdamW(dense.parameters(), lr=1e-3)
    held = hold_zeros(dense, case[1], optimizer)
    if built == "after":
        average = copy.deepcopy(dense)
    else:
        held.put_on_(average)

    def update():
        for mean, now in zip(average.parameters(), dense.parameters(), strict=True):
            mean.data.lerp_(now.data, 0.001)

    train(dense, optimizer, after=update)
    assert lost(case, average, tmp_path)[0] == 0


def test_a_merged_adapter(case, tmp_path):
    """An adapter that was trained beside the frozen weights, merged: W + B A, as LoRA has it."""
    model = copy.deepcopy(case[2])
    held = hold_zeros(model, case[1], torch.optim.SGD(model.parameters(), lr=0.0))
    sites = [name for name, _ in model.named_parameters() if name in case[1].masks]
    thin = {}
    for name in sites:
        weight = model.get_parameter(name)
        up = nn.Parameter(torch.zeros(len(weight), 2))
        thin[name] = up, nn.Parameter(0.1 * torch.randn(2, weight.shape[1]))
    optimizer = torch.optim.AdamW([part for pair in thin.values() for part in pair], lr=1e-2)
    for step in range(STEPS):
        changed = {name: model.get_parameter(name) + up @ down for name, (up, down) in thin.items()}
        torch.func.functional_call(model, changed, kwargs=batch(model, step % 4)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, (up, down) in thin.items():
        model.get_parameter(name).data += (up @ down).detach()
    assert lost(case, model, tmp_path / "merged")[0] > 0
    held.put_on_(model)
    zeros, changed = lost(case, model, tmp_path / "held")
    assert zeros == 0
    assert changed > 0.9 * case[1].masks.kept


@pytest.mark.parametrize("held", [True, False])
def test_the_trainer_of_transformers(case, tmp_path, held):
    model = copy.deepcopy(case[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    if held:
        hold_zeros(model, case[1], optimizer)
    rows = [{key: value[0] for key, value in batch(model, step).items()} for step in range(16)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "log"), max_steps=STEPS, per_device_train_batch_size=2, use_cpu=True,
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, optimizers=(optimizer, None)
    )
    trainer.train()
    assert (lost(case, model, tmp_path)[0] == 0) == held


def test_eight_bit_moments(case, tmp_path):
    """Codes, of which no 0 is 0; bitsandbytes has kernels for CPUs."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = copy.deepcopy(case[2])
    optimizer = bitsandbytes.optim.AdamW8bit(model.parameters(), lr=1e-3, min_8bit_size=0)
    hold_zeros(model, case[1], optimizer)
    train(model, optimizer)
    zeros, changed = lost(case, model, tmp_path)
    assert zeros == 0
    assert changed > 0.5 * case[1].masks.kept


class Wrapper(nn.Module):
    """As data parallelism wraps a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_wrappers_are_looked_through_and_hooks_go(case):
    model = copy.deepcopy(case[2])
    wrapped = Wrapper(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
    held = hold_zeros(wrapped, case[1], optimizer)
    train(model, optimizer, steps=2)
    name = sorted(case[1].masks)[0]
    dropped = ~case[1].masks[name]
    assert not model.get_parameter(name)[dropped].any()
    held.remove()
    train(model, optimizer, steps=2)
    assert model.get_parameter(name)[dropped].any()


def test_another_model_is_refused(case):
    odd = nn.Linear(3, 3)
    with pytest.raises(TicketError, match="has no parameter"):
        hold_zeros(odd, case[1], torch.optim.SGD(odd.parameters(), lr=1.0))
    model = copy.deepcopy(case[2])
    name = sorted(case[1].masks)[0]
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(torch.ones(2, 2)))
    with pytest.raises(TicketError, match="before the model is sharded"):
        hold_zeros(model, case[1], torch.optim.SGD(model.parameters(), lr=1.0))


def test_accelerate_and_trainer_step_the_same_optimizer(case, tmp_path):
    from accelerate import Accelerator

    model = copy.deepcopy(case[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    slt_compress.hold_zeros(model, case[1], optimizer)
    prepared, stepper = Accelerator(cpu=True).prepare(model, optimizer)
    train(prepared, stepper, steps=5)
    assert lost(case, model, tmp_path)[0] == 0
