"""Memory of a search: what saves it changes no byte of the result, or as little as it says."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
import torch
from test_training import QUICK, network, search_of, workload
from torch import nn

import slt_compress
from slt_compress.anatomy.recomputing import may_recompute, recomputed_blocks
from slt_compress.errors import RecipeError
from slt_compress.gates import Relaxed
from slt_compress.searching import stepping
from slt_compress.searching.half_states import HalfAdam, HalfSGD
from slt_compress.searching.recipes import parse_recipe
from slt_compress.searching.resuming import SearchFolder, search_folder
from slt_compress.sites.sites import find_sites


def blocks(features: int = 12) -> nn.Module:
    torch.manual_seed(0)
    inner = [
        nn.Sequential(nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())
        for _ in range(3)
    ]
    return nn.Sequential(nn.Linear(features, 32), nn.Sequential(*inner), nn.Linear(32, 2)).eval()


def scores(module=None, **changes):
    training = replace(QUICK, steps=12, hard=0.5, ema=0.9, selections=0, **changes)
    return search_of(module or network(), training=training).run().scores


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("state", ["fp32", "bf16"])
def test_steps_in_the_backward_pass_end_in_the_same_scores(monkeypatch, optimizer, state):
    taken = []
    plain = scores(optimizer=optimizer, state=state)
    monkeypatch.setattr(stepping, "MANY", 1)
    step = stepping.EarlySteps._step

    def counted(self, score):
        taken.append(score)
        step(self, score)

    monkeypatch.setattr(stepping.EarlySteps, "_step", counted)
    early = scores(optimizer=optimizer, state=state)
    assert len(taken) == 12 * 2
    assert same(plain, early)


def test_no_two_gradients_live_at_once(monkeypatch):
    monkeypatch.setattr(stepping, "MANY", 1)
    alive = []
    step = stepping.EarlySteps._step

    def seen(self, score):
        alive.append(sum(other.grad is not None for other in self.scores))
        step(self, score)

    monkeypatch.setattr(stepping.EarlySteps, "_step", seen)
    scores(blocks())
    assert set(alive) == {1}


@pytest.mark.parametrize("changes", [{"clip": 1.0}, {"precision": "bf16"}])
def test_what_needs_all_gradients_waits_for_them(monkeypatch, changes):
    plain = scores(**changes)
    monkeypatch.setattr(stepping, "MANY", 1)
    assert same(plain, scores(**changes))


def test_recomputed_blocks_give_the_same_scores_and_leave_no_trace():
    module = blocks()
    before = [dict(vars(child)) for child in module.modules()]
    plain, again = scores(module), scores(module, recompute="blocks")
    assert [dict(vars(child)) for child in module.modules()] == before
    for name in plain:  # sums of gradients are the same ones; only noise is drawn again
        torch.testing.assert_close(plain[name], again[name], rtol=0, atol=1e-6)


def test_recomputed_blocks_keep_only_their_input():
    module, kept = blocks(), []

    def count():
        kept.clear()
        inputs = torch.randn(64, 12)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (kept.append(t), t)[1], lambda t: t
        ):
            module(inputs).sum()
        return sum(t.numel() for t in kept if t.shape[:1] == (64,))

    plain = count()
    with recomputed_blocks(module) as number:
        assert number == 3  # the outermost ones
        assert count() < 0.5 * plain


def test_a_network_without_blocks_says_so():
    with pytest.raises(RecipeError, match="has no blocks"):
        search_of(nn.Linear(12, 2), training=replace(QUICK, recompute="blocks")).run()


def test_a_network_of_the_libraries_is_read_as_it_goes_and_own_code_up_front():
    class Own(nn.Module):
        pass

    assert not may_recompute(network())
    assert may_recompute(Own())
    checkpointed = network()
    checkpointed.grad_checkpointing = True
    assert may_recompute(checkpointed)


class Checkpointed(nn.Module):
    """A user's own module that recomputes a part of itself."""

    def __init__(self, *, reentrant: bool):
        super().__init__()
        self.inner, self.reentrant = network(), reentrant
        self.first = nn.Linear(12, 12)

    def forward(self, inputs):
        return torch.utils.checkpoint.checkpoint(
            self.inner, self.first(inputs), use_reentrant=self.reentrant
        )


# torch says so of every pass without gradients, as in a measurement
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_module_that_recomputes_itself_is_searched(reentrant):
    torch.manual_seed(0)
    found = scores(Checkpointed(reentrant=reentrant))
    start = search_of(Checkpointed(reentrant=reentrant), training=replace(QUICK, steps=1)).run()
    assert all(not torch.equal(found[name], start.scores[name]) for name in found)


def test_parts_of_a_batch_add_up_to_it():
    module = nn.Sequential(nn.Linear(12, 24, bias=False), nn.ReLU(), nn.Linear(24, 2, bias=False))
    whole = scores(module, optimizer="sgd", lr_schedule="linear", accumulate=1)
    for count in (2, 3):
        parts = scores(module, optimizer="sgd", lr_schedule="linear", accumulate=count)
        for name in whole:
            torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-5)


def test_a_penalty_counts_once_however_many_parts_there_are():
    module = nn.Sequential(nn.Linear(12, 24, bias=False), nn.ReLU(), nn.Linear(24, 2, bias=False))

    def of(count):
        training = replace(QUICK, steps=6, selections=0, optimizer="sgd", accumulate=count,
                           lr_schedule="linear")  # fmt: skip
        return search_of(module, method=Relaxed(penalty=1e-2), training=training).run().scores

    whole, parts = of(1), of(2)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("optimizer", "moments"), [("adam", 2), ("sgd", 1)])
def test_bf16_state_is_half_and_ends_near(optimizer, moments):
    module, data = network(), workload()
    ends = {state: scores(module, optimizer=optimizer, state=state) for state in ("fp32", "bf16")}
    for name, wanted in ends["fp32"].items():
        moved = (wanted - 0.5).square().mean().sqrt()
        error = (ends["bf16"][name] - wanted).square().mean().sqrt()
        assert 0 < error < 0.1 * moved
    half = HalfAdam if optimizer == "adam" else HalfSGD
    score = nn.Parameter(torch.zeros(100))
    score.grad = torch.ones(100)
    kept = half([score], lr=0.1, weight_decay=0.0, averaged=True)
    kept.step()
    state = {name: tensor for name, tensor in kept.state[score].items() if name != "step"}
    assert len(state) == moments + 1
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert data.train is not None


def test_small_changes_of_the_second_moment_are_not_lost():
    """After a jump of the gradient the second moment follows, though each change is below bf16."""
    score = nn.Parameter(torch.zeros(10_000))
    half = HalfAdam([score], lr=0.0, weight_decay=0.0, averaged=False)
    exact, decay = 0.0, 0.999
    for step in range(600):
        gradient = 1.0 if step < 100 else 0.5
        score.grad = torch.full((10_000,), gradient)
        half.step()
        exact = decay * exact + (1 - decay) * gradient**2
    mean = float(half.state[score]["exp_avg_sq"].float().mean())
    assert mean == pytest.approx(exact, rel=0.01)
    assert sqrt(float(half.state[score]["exp_avg_sq"].float().var())) < 0.1 * exact


def test_the_lag_is_that_of_the_running_mean():
    score = nn.Parameter(torch.zeros(1000))
    half = HalfSGD([score], lr=0.1, weight_decay=0.0, averaged=True)
    mean, generator = torch.zeros(1000), torch.Generator().manual_seed(0)
    half.param_groups[0]["mean_decay"] = 0.9
    for _ in range(50):
        score.grad = torch.randn(1000, generator=generator)
        half.step()
        mean.lerp_(score.detach(), 0.1)
    lag = half.state[score]["lag"].float()
    torch.testing.assert_close(score.detach() - lag, mean, rtol=0, atol=0.05)
    assert float(lag.abs().mean()) > 0.1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_killed_search_with_bf16_state_ends_in_the_same_scores(tmp_path, optimizer):
    def run(path, stop=None):
        def on_step(step):
            if step.index == stop:
                raise KeyboardInterrupt

        one = search_of(network(), training=replace(
            QUICK, steps=12, hard=0.5, ema=0.9, selections=2, state="bf16", optimizer=optimizer
        ))  # fmt: skip
        with search_folder(path, {}, fresh=False):
            return one.run(on_step, SearchFolder(path, 1e9)).scores

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop=5)
    assert same(whole, run(tmp_path / "killed"))


def test_all_of_it_together_on_a_transformer(checkpoints, data_sets, tmp_path):
    recipe = parse_recipe({
        "training": {"steps": 4, "batch_size": 4, "selections": 2, "accumulate": 2,
                     "recompute": "blocks", "state": "bf16"},
        "evaluation": {"limit": 8, "controls": "none"},
    })  # fmt: skip
    for name, data in {"gpt2": "prose", "vit": "pictures", "resnet": "pictures"}.items():
        ticket = slt_compress.search(
            checkpoints[name], data_sets[data], recipe=recipe, out=tmp_path / name
        )
        assert slt_compress.verify(ticket.path, in_process=True).ok
        assert len(find_sites(slt_compress.load(ticket.path)).sites)
