"""Training and searching: scores that learn, a schedule that is met, a module left as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from models import conv_net, lstm, mlp
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from traces import assert_same, traces

from slt_compress.checkpoints.tasks import forward_of
from slt_compress.errors import RecipeError, SltError
from slt_compress.evidence.metrics import evaluate
from slt_compress.gates import METHODS, Learned, Phase, Random, Relaxed, Sample
from slt_compress.gates.gating import gated
from slt_compress.searching.accelerators import accelerator_for
from slt_compress.searching.conclusion import SearchResult
from slt_compress.searching.objectives import Answer, distill_objective, task_objective
from slt_compress.searching.schedules import density_at
from slt_compress.searching.search import Search
from slt_compress.searching.settings import Training
from slt_compress.searching.setup import Workload
from slt_compress.searching.state import Step
from slt_compress.searching.training import Loop, engine_for, walk
from slt_compress.searching.workloads import own_workload
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import find_sites

FORWARD = forward_of("timm", "image-classification")


@dataclass(frozen=True)
class Epochs:
    """Batches in an order that each epoch turns round."""

    batches: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def epoch(self, index: int) -> Iterator[Any]:
        return iter(self.batches if index % 2 == 0 else self.batches[::-1])


def measure(module: nn.Module, batches: Any, *, reference: Any = None) -> dict[str, float]:
    return evaluate(module, batches, FORWARD, "image-classification", reference=reference)


def workload(*, distil: bool = False, features: int = 12) -> Workload:
    """Which of two features is larger; all the others say nothing."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 64, features, generator=generator)
    batches = tuple({"pixel_values": x, "labels": (x[:, 0] > x[:, 1]).long()} for x in inputs)
    name: Any = "image-classification"
    objective = distill_objective(FORWARD, name) if distil else task_objective(FORWARD, name)
    return Workload(
        forward=FORWARD, measure=measure, objective=objective, train=Epochs(batches[:6]),
        held_out=batches[6:7], test=batches[7:], compare=distil,
        probe={"pixel_values": batches[7]["pixel_values"]},
    )  # fmt: skip


def network(features: int = 12) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(features, 48, bias=False), nn.BatchNorm1d(48), nn.ReLU(),
        nn.Linear(48, 2, bias=False),
    )  # fmt: skip
    return module.eval()


QUICK = Training(steps=20, lr=0.05, batch_size=64, ema=0.0, device="cpu")


def search_of(module: nn.Module, **changes: Any) -> Search:
    settings: dict[str, Any] = {
        "module": module, "plan": find_sites(module), "workload": workload(),
        "budget": Budget(density=0.3), "method": Relaxed(), "training": QUICK, "random_init": True,
    }  # fmt: skip
    return Search(**{**settings, **changes})


def test_a_search_learns() -> None:
    result = search_of(network(), training=replace(QUICK, steps=150)).run()
    hard, random = result.metrics["hard"], result.controls["random"]
    assert hard is not None
    assert hard["accuracy"] > 0.9
    assert random["accuracy"] < hard["accuracy"] - 0.15
    assert hard["loss"] < 0.6 * random["loss"]
    assert result.masks.kept == round(0.3 * result.plan.gated)
    first = result.masks["0.weight"]
    assert float(first[:, :2].float().mean()) > 2 * float(first[:, 2:].float().mean())
    assert result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]


def test_what_was_rounded_throughout_is_measured_rounded() -> None:
    found = {hard: search_of(network(), training=replace(QUICK, hard=hard)).run().metrics
             for hard in (0.4, 1.0)}  # fmt: skip
    assert found[1.0]["soft"] == pytest.approx(found[1.0]["hard"], rel=1e-5)
    assert found[0.4]["soft"] != pytest.approx(found[0.4]["hard"], rel=1e-5)


def test_a_pretrained_network_is_distilled() -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    data = workload(distil=True)
    for _ in range(20):
        for batch in data.train:
            module.train()
            loss = nn.functional.cross_entropy(module(batch["pixel_values"]), batch["labels"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    module.eval()
    result = search_of(
        module, workload=data, random_init=False, training=replace(QUICK, steps=120, lr=0.03)
    ).run()
    hard, random = result.metrics["hard"], result.controls["random"]
    assert hard is not None
    assert result.gains == {}
    assert hard["agreement"] > 0.93
    assert hard["kl"] < 0.3 * random["kl"]
    assert result.metrics["dense"]["accuracy"] > 0.95


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_an_exact_mask_and_its_evidence(method: str) -> None:
    module = network()
    result = search_of(module, method=METHODS[method]()).run()
    learned = isinstance(METHODS[method](), Learned)
    assert result.masks.kept == round(0.3 * result.masks.total)
    assert len(result.history) == (20 if learned else 0)
    assert (result.metrics["soft"] is None) != learned
    assert sorted(result.controls) == ["magnitude", "random", "shuffled"]
    assert sorted(result.buffers) == sorted(name for name, _ in module.named_buffers())
    assert {n: s.shape for n, s in result.scores.items()} == {
        n: m.shape for n, m in result.masks.items()
    }
    assert all(torch.equal(w, module.get_parameter(n)) for n, w in result.weights.items())


def test_the_evidence_is_of_the_masked_network() -> None:
    module, data = network(), workload()
    result = search_of(module, method=Random()).run()
    with torch.no_grad():
        for name, mask in result.masks.items():
            gain = (1 / result.masks.density_of(name)) ** 0.5
            assert result.gains[name] == pytest.approx(gain)
            module.get_parameter(name).mul_(torch.tensor(result.gains[name])).mul_(mask)
        module.load_state_dict({**module.state_dict(), **result.buffers})
        assert measure(module, data.test) == result.metrics["hard"]
        assert torch.equal(result.probe.logits, module(result.probe.inputs["pixel_values"]))
    assert result.probe.inputs["pixel_values"].shape == (8, 12)
    means = torch.stack([
        (b["pixel_values"] @ module[0].weight.T).mean(0) for b in data.train
    ]).mean(0)  # fmt: skip
    assert torch.allclose(result.buffers["1.running_mean"], means.detach(), atol=1e-5)


class Spy:
    """The relaxed gate, noting the share of gates above 1/2 at every step."""

    name = "spy"
    signed, prior, rescales, suited = False, "magnitude", True, ()

    def __init__(self) -> None:
        self.gate = Relaxed()
        self.open: dict[int, list[Tensor]] = {}
        self.phases: dict[int, Phase] = {}
        self.scores: dict[int, Tensor] = {}
        self.rescaled: set[bool] = set()

    def start(self, weight: Tensor, prior: Tensor | None, key: int) -> Tensor:
        return self.gate.start(weight, prior, key)

    def shifts(self, *arguments: Any) -> dict[str, float]:
        return self.gate.shifts(*arguments)

    def penalty_of(self, scores: Mapping[str, Tensor], phase: Phase) -> Tensor | None:
        return self.gate.penalty_of(scores, phase)

    def effective(self, score: Tensor, weight: Tensor, sample: Sample) -> Tensor:
        gates = self.gate.effective(score.detach(), torch.ones_like(weight), sample)
        self.open.setdefault(sample.phase.step, []).append((gates > 0.5).flatten())
        self.phases[sample.phase.step] = sample.phase
        self.scores.setdefault(sample.phase.step, score.detach().clone())
        self.rescaled.add(sample.rescale)
        return self.gate.effective(score, weight, sample)


def records_of(loop: Loop) -> list[Step]:
    with accelerator_for(loop.training) as accelerator, engine_for(loop, accelerator) as engine:
        return [state.latest for state in walk(engine)]


def steps_of(module: nn.Module, training: Training, method: Any, **changes: Any) -> list[Step]:
    plan, data = find_sites(module), workload(features=200)
    scores = {s.name: method.start(torch.zeros(s.shape), None, 1) for s in plan.sites}
    with gated(module, plan, method=method, scores=scores) as gates:
        loop = Loop(
            module=module, plan=plan, gates=gates, method=method, budget=Budget(density=0.1),
            objective=data.objective, batches=data.train, start_density=0.8,
            training=training,
        )  # fmt: skip
        return records_of(replace(loop, **changes))


def test_the_scheduled_density_is_met_at_every_step() -> None:
    spy = Spy()
    training = replace(QUICK, steps=30, ramp=0.5, anneal=0.4, hard=0.2)
    steps = steps_of(network(200), training, spy)
    total = 200 * 48 + 48 * 2
    for index, step in enumerate(steps):
        expected = density_at(index / 30, "cubic", start=0.8, target=0.1, ramp=0.5)
        assert step.density == pytest.approx(expected)
        share = float(torch.cat(spy.open[index]).float().mean())
        assert share == pytest.approx(expected, abs=1 / total if step.hard else 0.02)
        assert (step.index, step.total, step.target) == (index, 30, 0.1)
    assert [step.hard for step in steps] == [False] * 24 + [True] * 6
    assert [spy.phases[i].annealed for i in (0, 18, 24, 29)] == pytest.approx([0, 0, 0.5, 11 / 12])
    assert all(len(spy.open[i]) == 2 for i in range(30)), "a weight was sampled more than once"


def test_the_learning_rate_falls_to_nothing_and_the_scores_alone_move() -> None:
    module = network(200)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    statistics = module[1].running_mean.clone()
    training = replace(QUICK, steps=10, decay=0.5)
    moves: list[float] = []
    plan, data = find_sites(module), workload(features=200)
    scores = {s.name: Relaxed().start(torch.zeros(s.shape), None, 1) for s in plan.sites}
    with gated(module, plan, method=Relaxed(), scores=scores) as gates:
        loop = Loop(
            module=module, plan=plan, gates=gates, method=Relaxed(), budget=Budget(density=0.1),
            objective=data.objective, batches=data.train, start_density=0.8,
            training=training,
        )  # fmt: skip
        last = gates.scores["0.weight"].detach().clone()
        with accelerator_for(training) as accelerator, engine_for(loop, accelerator) as engine:
            for state in walk(engine):
                now = state.scores["0.weight"].clone()
                moves.append(float((now - last).abs().max()))
                last = now
                assert torch.equal(module[1].running_mean, statistics)
                assert all(score.grad is None for score in gates.scores.values())
    assert moves[0] == pytest.approx(0.05, rel=0.01)
    assert moves[9] < 0.35 * max(moves[:5])
    assert all(torch.equal(before[n], p) for n, p in module.named_parameters())


def test_max_time_ends_the_search_with_the_schedule_at_its_end() -> None:
    started = time.monotonic()
    steps = steps_of(network(200), replace(QUICK, steps=10_000_000, max_time=0.7), Relaxed())
    assert time.monotonic() - started < 10
    assert 3 < len(steps) < 10_000
    assert steps[-1].density == 0.1
    assert steps[-1].hard
    assert steps[-1].total == len(steps)


def test_a_search_that_time_ended_gives_a_measured_mask() -> None:
    training = replace(QUICK, steps=10_000_000, max_time=0.5)
    result = search_of(network(), training=training).run()
    assert result.masks.kept == round(0.3 * result.masks.total)
    assert "held_out" in result.history[-1]


def test_epochs_and_steps_make_the_length() -> None:
    assert Training(steps=7).total_steps(100) == 7
    assert Training(epochs=1.5).total_steps(100) == 150
    assert Training(epochs=0.001).total_steps(100) == 1
    assert Training().total_steps(3) == 2_000
    assert len(steps_of(network(200), Training(epochs=2.0, lr=0.1, device="cpu"), Relaxed())) == 12


def equal(one: SearchResult, other: SearchResult) -> bool:
    return all(torch.equal(one.scores[name], other.scores[name]) for name in one.scores)


def test_the_same_seed_gives_the_same_result() -> None:
    torch.manual_seed(1)
    first = search_of(network()).run()
    torch.manual_seed(2)
    module = network()
    second = search_of(module).run()
    assert equal(first, second)
    assert first.masks.iou(second.masks) == 1.0
    assert first.history == second.history
    assert (first.metrics, first.controls) == (second.metrics, second.controls)
    assert equal(first, search_of(module).run()), "the second search on a module differs"
    assert not equal(first, search_of(network(), training=replace(QUICK, seed=1)).run())


def squared(module: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    output = module(**inputs)
    return (output if isinstance(output, Tensor) else output[0]).square().mean()


def spectral() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 2)).train()


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(
    "build",
    [conv_net, lstm, mlp, lambda: replace(mlp(), module=spectral())],
    ids=["conv-net", "lstm", "mlp", "spectral"],
)
def test_the_callers_module_is_as_it_was(
    build: Callable[[], Any], precision: Any, raises: bool
) -> None:
    pico = build()
    before = traces(pico.module)

    def stop(step: Step) -> None:
        if raises and step.index == 2:
            raise KeyboardInterrupt

    data = [dict(pico.inputs)] * 4
    search = search_of(
        pico.module, workload=own_workload(pico.module, data, squared),
        training=replace(QUICK, steps=4, precision=precision), random_init=False,
    )  # fmt: skip
    # oneDNN has a bfloat16 LSTM for processors with AVX-512 only
    slow = precision == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if build is lstm and slow:
        with pytest.raises(RuntimeError, match="could not create a primitive"):
            search.run(stop)
    elif raises:
        with pytest.raises(KeyboardInterrupt):
            search.run(stop)
    else:
        assert search.run(stop).metrics["hard"]
    assert_same(before, traces(pico.module))


def test_a_forward_of_the_modules_own_comes_back() -> None:
    pico = mlp()
    own = pico.module.forward
    pico.module.forward = lambda input: own(input) * 2.0
    forward, expected = pico.module.forward, pico()
    data = own_workload(pico.module, [dict(pico.inputs)] * 2, squared)
    training = replace(QUICK, steps=2, precision="bf16")
    search_of(pico.module, workload=data, training=training).run()
    assert pico.module.forward is forward
    assert torch.equal(pico(), expected)


def test_a_loss_that_is_no_number_is_refused() -> None:
    pico = mlp()
    before = traces(pico.module)
    data = own_workload(
        pico.module, [dict(pico.inputs)] * 2,
        lambda module, inputs: squared(module, inputs) * float("nan"),
    )  # fmt: skip
    with pytest.raises(SltError, match="the loss is nan at step 1"):
        search_of(pico.module, workload=data).run()
    assert_same(before, traces(pico.module))


def test_the_best_mask_on_the_held_out_slice_is_taken() -> None:
    result = search_of(network(), training=replace(QUICK, steps=40, hard=0.5, selections=4)).run()
    measured = {i: r["held_out"] for i, r in enumerate(result.history) if "held_out" in r}
    assert sorted(measured) == [25, 30, 35, 39]
    assert "seconds" not in result.history[0]
    once = search_of(network(), training=replace(QUICK, selections=0)).run()
    assert not any("held_out" in record for record in once.history)


@pytest.mark.parametrize(
    ("losses", "best"),
    [([3.0, 1.0, 2.0, 1.5], 30), ([1.0, 2.0, 3.0, 4.0], 25), ([2.0, 1.0, 1.0, 3.0], 35)],
)
def test_the_lowest_held_out_loss_wins_and_of_equal_ones_the_last(
    losses: list[float], best: int
) -> None:
    data, left, spy = workload(), list(losses), Spy()

    def scripted(module: nn.Module, batches: Any, *, reference: Any = None) -> dict[str, float]:
        if batches is data.held_out:
            return {"loss": left.pop(0)}
        return measure(module, batches, reference=reference)

    result = search_of(
        network(), workload=replace(data, measure=scripted), method=spy,
        training=replace(QUICK, steps=40, hard=0.5, selections=4),
    ).run()  # fmt: skip
    assert left == []
    # what a step leaves behind is what the next one starts from
    assert torch.equal(result.scores["0.weight"], spy.scores[best + 1])


def test_a_random_network_starts_half_open_and_rescaled_and_a_pretrained_one_by_magnitude() -> None:
    barely = replace(QUICK, steps=1, lr=1e-6)
    for random_init in (True, False):
        spy = Spy()
        result = search_of(network(), method=spy, training=barely, random_init=random_init).run()
        assert spy.rescaled == {random_init}
        assert result.history[0]["density"] == (0.5 if random_init else 1.0)
        scores, weights = result.scores["0.weight"], result.weights["0.weight"]
        by_magnitude = weights.abs().flatten().argsort()
        ordered = bool((scores.flatten()[by_magnitude].diff() > 0).all())
        assert ordered != random_init
        assert float(scores.mean()) == pytest.approx(0.5, abs=0.01)
    chosen = search_of(network(), training=replace(barely, start_density=0.7)).run()
    assert chosen.history[0]["density"] == 0.7
    below = search_of(network(), training=replace(barely, start_density=0.1)).run()
    assert below.history[0]["density"] == 0.3


def test_the_dense_network_teaches_in_eval_mode_with_its_own_statistics() -> None:
    module, seen = network(), []
    data = workload(distil=True)

    def forward(model: nn.Module, batch: Any) -> Answer:
        output = FORWARD(model, batch)
        if not torch.is_grad_enabled() and not model[1].training:
            seen.append((batch["pixel_values"], output.clone()))
        return Answer(output, {})

    objective = replace(data.objective, target=forward)
    plain = network()
    search_of(module, workload=replace(data, objective=objective), random_init=False).run()
    assert len(seen) == 20
    with torch.no_grad():
        assert all(torch.equal(plain(inputs), output) for inputs, output in seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"training\.steps must be above 0 and finite, not 0"),
        ({"epochs": -1.0}, r"training\.epochs"),
        ({"epochs": float("inf")}, r"training\.epochs .* not inf"),
        ({"lr": float("nan")}, r"training\.lr .* not nan"),
        ({"batch_size": 0}, r"training\.batch_size"),
        ({"max_time": 0.0}, r"training\.max_time"),
        ({"ramp": 1.1}, r"training\.ramp is a share in \[0, 1\], not 1\.1"),
        ({"hard": -0.1}, r"training\.hard"),
        ({"selections": -1}, r"training\.selections"),
        ({"seed": -1}, r"training\.seed must be in \[0, 2\*\*63\), not -1"),
        ({"seed": 2**63}, r"training\.seed"),
    ],
)
def test_settings_that_make_no_search_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Training(**options)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_at_their_ends(share: float) -> None:
    training = replace(QUICK, steps=5, decay=share, ramp=share, anneal=share, hard=share)
    result = search_of(network(), training=training).run()
    assert result.masks.kept == round(0.3 * result.masks.total)


@pytest.mark.parametrize("device", ["nonsense", "meta", "xpu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with (
        pytest.raises(RecipeError, match=f"training.device={device}"),
        accelerator_for(Training(device=device)),
    ):
        pass


def test_own_batches_hold_some_out() -> None:
    data = own_workload(mlp().module, list(range(23)), squared)
    assert list(data.held_out) == [9, 19]
    assert list(data.train) == [i for i in range(23) if i not in (9, 19)]
    assert len(data.train) == 21
    two = own_workload(mlp().module, ["a", "b"], squared)
    assert (list(two.train), list(two.held_out)) == (["a"], ["b"])
    one = own_workload(mlp().module, ["a"], squared)
    assert (list(one.train), list(one.held_out)) == (["a"], ["a"])


def test_sgd_and_a_running_mean_find_a_mask_too() -> None:
    training = replace(
        QUICK, steps=150, optimizer="sgd", lr=20.0, lr_schedule="cosine", ema=0.9, clip=1.0
    )
    hard = search_of(network(), training=training).run().metrics["hard"]
    assert hard is not None
    assert hard["accuracy"] > 0.9


def test_the_running_mean_is_what_is_binarized_and_not_the_last_scores() -> None:
    plain = search_of(network(), training=replace(QUICK, selections=0)).run()
    averaged = search_of(network(), training=replace(QUICK, selections=0, ema=0.9)).run()
    assert plain.history == averaged.history, "the mean must not touch the training"
    name = "0.weight"
    assert not torch.equal(plain.scores[name], averaged.scores[name])


def moved(training: Training) -> float:
    """How far one step of plain gradient descent takes the scores, in their norm."""
    module, plan = network(), find_sites(network())
    scores = {site.name: torch.full(site.shape, 0.5) for site in plan.sites}
    with gated(module, plan, method=Relaxed(), scores=scores, rescale=True) as gates:
        loop = Loop(
            module=module, plan=plan, gates=gates, method=Relaxed(), budget=Budget(density=0.5),
            objective=workload().objective, batches=workload().train, start_density=0.5,
            training=training,
        )  # fmt: skip
        records_of(loop)
        steps = [gates.scores[name].detach() - 0.5 for name in scores]
    return float(torch.cat([step.flatten() for step in steps]).norm())


def test_clipping_bounds_the_gradient_of_all_scores_together() -> None:
    one = replace(QUICK, steps=1, optimizer="sgd", lr=1.0, decay=0.0)
    free, bound = moved(one), moved(replace(one, clip=1e-3))
    assert free > 1e-2
    # Nesterov's first step is the gradient times 1 + momentum
    assert bound == pytest.approx(1.9e-3, rel=0.01)


def test_frozen_batchnorm_takes_the_statistics_of_the_dense_network() -> None:
    seen: list[bool] = []

    def look(module: nn.Module, inputs: Any) -> None:
        seen.append(module.training)

    for policy in ("batch", "frozen"):
        module = network(200)  # as `steps_of` wants it
        handle = module[1].register_forward_pre_hook(look)
        steps_of(module, replace(QUICK, steps=2, batchnorm=policy), Relaxed())
        handle.remove()
    assert seen == [True, True, False, False]


def test_a_search_without_progress_ends_early() -> None:
    training = replace(QUICK, steps=200, hard=0.9, selections=40, patience=2, lr=1e-9)
    losses = iter(0.1 * number for number in range(100))

    def worse(module: nn.Module, batches: Any, *, reference: Any = None) -> dict[str, float]:
        return {"loss": next(losses)}

    data = replace(workload(), measure=worse)
    result = search_of(network(), workload=data, training=training).run()
    assert len(result.history) < 60
    assert sum("held_out" in record for record in result.history) == 3
