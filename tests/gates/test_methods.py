"""Methods: the contract of each row of the table, and every gate against an oracle."""

from __future__ import annotations

from math import exp, sqrt
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.gates import (
    METHODS,
    EdgePopup,
    Gumbel,
    HardConcrete,
    Learned,
    Magnitude,
    OneShot,
    Phase,
    Random,
    Relaxed,
    Sample,
)
from slt_compress.gates.base import sample_key
from slt_compress.sites.budget import Budget, binarize

SHAPE = (12, 17)
LEARNED = [name for name, method in METHODS.items() if isinstance(method(), Learned)]
ONE_SHOT = [name for name, method in METHODS.items() if isinstance(method(), OneShot)]
NOISELESS = {"edge-popup"}


def weight(dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def sample_of(*, step: int = 3, shift: float = 0.1, rescale: bool = False, **phase: Any) -> Sample:
    found = Phase(step=step, seed=5, **phase)
    return Sample(phase=found, shift=shift, key=sample_key(5, f"{step}:w"), rescale=rescale)


def start(method: Learned, spread: Tensor | None = None) -> Tensor:
    return method.start(weight(), spread, key=9)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_uses_the_methods_own_names(name: str) -> None:
    assert METHODS[name].name == name
    assert (name in LEARNED) != (name in ONE_SHOT)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_have_the_weights_shape_and_depend_on_the_key_alone(
    name: str, dtype: torch.dtype
) -> None:
    method = METHODS[name]()
    values = weight(dtype).fill_(0.5)

    def scores(key: int) -> Tensor:
        if isinstance(method, Learned):
            return method.start(values, None, key)
        return method.score(values, key)

    torch.manual_seed(0)
    first = scores(7)
    state = torch.get_rng_state()
    assert first.shape == SHAPE
    assert first.device.type == "cpu"
    assert first.isfinite().all()
    assert torch.equal(first, scores(7))
    assert not torch.equal(first, scores(8))
    assert torch.equal(state, torch.get_rng_state()), "the caller's generator was used"


def test_magnitude_keeps_the_largest_weights() -> None:
    values = weight()
    mask = binarize({"w": Magnitude().score(values, 0)}, Budget(density=0.3))["w"]
    assert values[mask].abs().min() > values[~mask].abs().max()


def test_magnitude_tells_the_nearest_weights_apart() -> None:
    values = torch.full((1_000,), 1.0)
    values[::2] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    mask = binarize({"w": Magnitude().score(values, 0)}, Budget(density=0.5))["w"]
    assert mask[::2].all()
    assert not mask[1::2].any()


@pytest.mark.parametrize("constant", [1.0, -0.03, 0.0])
def test_equal_magnitudes_are_kept_in_no_order_of_rows(constant: float) -> None:
    values = torch.full((100, 1_000), constant)
    mask = binarize({"w": Magnitude().score(values, 3)}, Budget(density=0.05))["w"]
    rows = mask.sum(1).double()
    assert rows.mean() == 50.0
    assert rows.std() < 2 * sqrt(50)
    assert rows[:50].sum() == pytest.approx(2_500, abs=300)


def test_random_scores_are_uniform() -> None:
    scores = Random().score(torch.zeros(100, 100), 4)
    assert float(scores.min()) >= 0.0
    assert float(scores.max()) < 1.0
    assert float(scores.mean()) == pytest.approx(0.5, abs=0.02)


def test_a_start_without_prior_is_a_narrow_gaussian_around_one_half() -> None:
    scores = Relaxed(spread=0.02).start(torch.zeros(200, 200), None, 1)
    assert scores.dtype is torch.float32
    assert float(scores.mean()) == pytest.approx(0.5, abs=1e-3)
    assert float(scores.std()) == pytest.approx(0.02, rel=0.05)


def test_a_start_with_a_prior_keeps_its_order() -> None:
    prior = torch.rand(SHAPE)
    scores = Relaxed(prior_spread=0.6).start(weight(), prior, 1)
    assert torch.equal(scores.view(-1).argsort(), prior.view(-1).argsort())
    assert torch.allclose(scores, 0.5 + 0.6 * (prior - 0.5))


@pytest.mark.parametrize(
    "options", [{"sigma": 0.0}, {"sigma": -1.0}, {"sigma_end": 0.0}, {"sigma_end": 1.5}]
)
def test_a_gate_without_noise_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="sigma > 0 and 0 < sigma_end <= 1"):
        Relaxed(**options)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("hard", [False, True])
def test_the_sample_is_a_pure_function_of_seed_step_and_site(name: str, hard: bool) -> None:
    method = METHODS[name]()
    assert isinstance(method, Learned)
    score = start(method)
    first = method.effective(score, weight(), sample_of(step=3, hard=hard))
    torch.rand(10)
    assert torch.equal(first, method.effective(score, weight(), sample_of(step=3, hard=hard)))
    later = method.effective(score, weight(), sample_of(step=4, hard=hard))
    assert torch.equal(first, later) == (hard or name in NOISELESS)
    assert len({sample_key(s, f"{t}:{n}") for s in (0, 1) for t in (0, 1) for n in "ab"}) == 8


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_effective_weight_keeps_dtype_and_shape_and_trains_the_score_alone(
    name: str, hard: bool, rescale: bool, dtype: torch.dtype
) -> None:
    method = METHODS[name]()
    assert isinstance(method, Learned)
    score = torch.nn.Parameter(start(method))
    frozen = weight(dtype)
    bits = frozen.clone()
    effective = method.effective(score, frozen, sample_of(hard=hard, rescale=rescale))
    assert effective.dtype is dtype
    assert effective.shape == SHAPE
    effective.float().sum().backward()
    assert score.grad is not None
    assert score.grad.dtype is torch.float32
    assert score.grad.isfinite().all()
    assert score.grad.count_nonzero() > 0.2 * score.numel()
    assert frozen.grad is None
    assert torch.equal(frozen, bits)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_nothing_is_saved_for_backward_but_the_score_and_the_weight(
    name: str, rescale: bool, hard: bool
) -> None:
    method = METHODS[name]()
    assert isinstance(method, Learned)
    score, frozen = torch.nn.Parameter(start(method)), weight()
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        effective = method.effective(score, frozen, sample_of(rescale=rescale, hard=hard))
    saved += [kept for kept in vars(effective.grad_fn).values() if isinstance(kept, Tensor)]
    allowed = {score.data_ptr(), frozen.data_ptr()}
    assert {tensor.data_ptr() for tensor in saved if tensor.numel() > 1} <= allowed


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("density", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_hard_phase_keeps_the_scheduled_count(name: str, density: float, rescale: bool) -> None:
    method = METHODS[name]()
    assert isinstance(method, Learned)
    phase = Phase(step=0, seed=0, hard=True)
    scores = {"w": start(method)}
    shifts = method.shifts(scores, Budget(density=0.01), density, phase, {"w": 0.0})
    sample = Sample(phase=phase, shift=shifts["w"], key=1, rescale=rescale)
    effective = method.effective(scores["w"], weight(), sample)
    kept = round(density * effective.numel())
    mask = binarize(scores, Budget(density=density))["w"]
    assert torch.equal(effective != 0, mask)
    gain = 1 / sqrt(kept / effective.numel()) if rescale else 1.0
    assert torch.allclose(effective, torch.where(mask, gain * weight(), 0.0), rtol=1e-5)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("annealed", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
def test_the_soft_gates_that_end_open_meet_the_density(
    name: str, annealed: float, density: float
) -> None:
    method = METHODS[name]()
    assert isinstance(method, Learned)
    ones = torch.ones(300, 300)
    scores = {"w": method.start(ones, torch.rand(300, 300), 1)}
    phase = Phase(step=0, seed=0, annealed=annealed)
    shifts = method.shifts(scores, Budget(density=0.01), density, phase, {"w": 0.0})
    sample = Sample(phase=phase, shift=shifts["w"], key=1, rescale=False)
    gates = method.effective(scores["w"], ones, sample)
    assert float((gates > 0.5).float().mean()) == pytest.approx(density, abs=0.006)


def noise_of(sample: Sample, shape: tuple[int, ...]) -> Tensor:
    """The standard normal numbers behind a sample, as torch's generator gives them."""
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(sample.key))


def oracle(score: Tensor, values: Tensor, sample: Sample, sigma: float) -> Tensor:
    """The gate of the docstring in plain autograd; a hard one passes the soft one's gradient."""
    noise = noise_of(sample, tuple(score.shape)) if sample.phase.noise else 0.0
    gate = (score - sample.shift + sigma * noise).clamp(0, 1)
    if sample.phase.hard:
        rounded = (score > sample.shift + 0.5).float()
        gate = gate + (rounded - gate).detach()
    rms = gate.square().mean().sqrt().detach() if sample.rescale else 1.0
    return gate * values / rms


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize(("hard", "noise"), [(False, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("annealed", [0.0, 0.5, 1.0])
def test_values_and_gradients_of_the_gaussian_gate(
    rescale: bool, hard: bool, noise: bool, annealed: float
) -> None:
    method = Relaxed(sigma=0.4, sigma_end=0.25)
    sigma = {0.0: 0.4, 0.5: 0.25, 1.0: 0.1}[annealed]
    sample = sample_of(shift=0.2, rescale=rescale, hard=hard, noise=noise, annealed=annealed)
    values, upstream = weight(), torch.randn(SHAPE)
    first = torch.randn(SHAPE).mul(0.7).add(0.5).requires_grad_()
    second = first.detach().clone().requires_grad_()
    effective = method.effective(first, values, sample)
    expected = oracle(second, values, sample, sigma)
    assert torch.allclose(effective, expected, atol=1e-6)
    effective.backward(upstream)
    expected.backward(upstream)
    assert first.grad is not None
    assert torch.allclose(first.grad, second.grad, atol=1e-6)
    assert 0 < int((first.grad == 0).sum()) < first.numel()


def test_the_gradient_is_that_of_finite_differences() -> None:
    sample = sample_of(shift=0.2)
    score = torch.rand(SHAPE).requires_grad_()
    Relaxed().effective(score, weight(), sample).sum().backward()
    nudge = 1e-3
    up, down = (
        Relaxed().effective(score.detach() + sign * nudge, weight(), sample) for sign in (1, -1)
    )
    differences = (up - down) / (2 * nudge)
    assert score.grad is not None
    gate = oracle(score.detach(), torch.ones(SHAPE), sample, 0.5)
    inside = (gate - 0.5).abs() < 0.5 - 2 * nudge
    outside = (score.detach() - 0.2 + 0.5 * noise_of(sample, SHAPE) - 0.5).abs() > 0.5 + 2 * nudge
    assert inside.sum() > 50
    assert outside.sum() > 20
    assert torch.allclose(score.grad[inside], differences[inside], atol=2e-3)
    assert torch.equal(score.grad[outside], torch.zeros_like(score.grad[outside]))


@pytest.mark.parametrize("name", LEARNED)
def test_rescaled_gates_that_are_all_closed_give_zeros(name: str) -> None:
    method = METHODS[name]()
    assert isinstance(method, Learned)
    sample = sample_of(shift=100.0, rescale=True)
    effective = method.effective(torch.zeros(SHAPE), weight(), sample)
    assert torch.equal(effective, torch.zeros(SHAPE))


class Logistic(NamedTuple):
    """The numbers of a logistic gate at one point of the annealing, worked out by hand."""

    method: HardConcrete | Gumbel
    annealed: float
    unit: float
    temperature: float
    low: float = 0.0
    high: float = 1.0


CONCRETE = HardConcrete(beta=0.5, beta_end=0.4, unit=3.0)
SOFTMAX = Gumbel(temperature=0.8, temperature_end=0.2, unit=3.0, growth=4.0)
LOGISTIC = [
    Logistic(CONCRETE, 0.0, unit=3.0, temperature=0.5, low=-0.1, high=1.1),
    Logistic(CONCRETE, 0.5, unit=3.0, temperature=0.35, low=-0.1, high=1.1),
    Logistic(CONCRETE, 1.0, unit=3.0, temperature=0.2, low=-0.1, high=1.1),
    Logistic(SOFTMAX, 0.0, unit=3.0, temperature=0.8),
    Logistic(SOFTMAX, 0.5, unit=6.0, temperature=0.4),
    Logistic(SOFTMAX, 1.0, unit=12.0, temperature=0.2),
]
LOGISTIC_IDS = [f"{entry.method.name}-{entry.annealed}" for entry in LOGISTIC]


def uniform_of(sample: Sample, shape: tuple[int, ...]) -> Tensor:
    """The uniform numbers behind a logistic sample, as torch's generator gives them."""
    generator = torch.Generator().manual_seed(sample.key)
    return torch.empty(shape).uniform_(1e-6, 1 - 1e-6, generator=generator)


def logistic_gate(score: Tensor, sample: Sample, entry: Logistic) -> Tensor:
    """The soft gate as the papers write it, in fp64 and plain autograd."""
    logits = entry.unit * (score.double() - sample.shift)
    if sample.phase.noise:
        uniform = uniform_of(sample, tuple(score.shape)).double()
        logits = logits + uniform.log() - (1 - uniform).log()
    soft = 1 / (1 + (-logits / entry.temperature).exp())
    return ((entry.high - entry.low) * soft + entry.low).clamp(0, 1)


def logistic_oracle(score: Tensor, values: Tensor, sample: Sample, entry: Logistic) -> Tensor:
    """The effective weight; a hard one passes the soft one's gradient, the rms passes none."""
    gate = logistic_gate(score, sample, entry)
    if sample.phase.hard:
        gate = gate + ((score > sample.shift).double() - gate).detach()
    rms = gate.square().mean().sqrt().detach() if sample.rescale else 1.0
    return gate * values.double() / rms


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("entry", LOGISTIC, ids=LOGISTIC_IDS)
def test_values_and_gradients_of_the_logistic_gates(
    rescale: bool, hard: bool, noise: bool, entry: Logistic
) -> None:
    sample = sample_of(shift=0.2, rescale=rescale, hard=hard, noise=noise, annealed=entry.annealed)
    values, upstream = weight(), torch.randn(SHAPE)
    first = torch.randn(SHAPE).mul(0.7).add(0.2).requires_grad_()
    second = first.detach().clone().requires_grad_()
    effective = entry.method.effective(first, values, sample)
    expected = logistic_oracle(second, values, sample, entry)
    assert torch.allclose(effective.double(), expected, atol=1e-5)
    effective.backward(upstream)
    expected.backward(upstream.double())
    assert first.grad is not None
    assert torch.allclose(first.grad, second.grad, atol=1e-4)
    if entry.low < 0:
        gate = logistic_gate(first.detach(), sample, entry)
        assert torch.equal(first.grad == 0, (gate == 0) | (gate == 1))
        assert (gate == 0).any()
        assert (gate == 1).any()


@pytest.mark.parametrize("entry", LOGISTIC, ids=LOGISTIC_IDS)
def test_the_gradient_of_the_logistic_gates_is_that_of_finite_differences(
    entry: Logistic,
) -> None:
    sample = sample_of(shift=0.2, annealed=entry.annealed)
    score = (torch.rand(SHAPE) - 0.3).requires_grad_()
    ones, nudge = torch.ones(SHAPE), 1e-3
    entry.method.effective(score, ones, sample).sum().backward()
    up, down = (
        entry.method.effective(score.detach() + sign * nudge, ones, sample) for sign in (1, -1)
    )
    smooth = ((up > 0) & (up < 1)) == ((down > 0) & (down < 1))  # no kink of the clamp between
    assert score.grad is not None
    assert smooth.float().mean() > 0.95
    slack = 1e-2 * (entry.unit / entry.temperature)
    differences = (up - down) / (2 * nudge)
    assert torch.allclose(score.grad[smooth], differences[smooth], atol=slack, rtol=0)


@pytest.mark.parametrize("entry", LOGISTIC, ids=LOGISTIC_IDS)
@pytest.mark.parametrize("centred", [-0.7, -0.1, 0.0, 0.3])
def test_the_keep_probability_of_a_logistic_gate_is_the_share_that_opens(
    entry: Logistic, centred: float
) -> None:
    shape = (300, 300)
    sample = sample_of(shift=0.25, annealed=entry.annealed)
    gates = entry.method.effective(torch.full(shape, 0.25 + centred), torch.ones(shape), sample)
    law = entry.method.law(sample.phase)
    chance = float(law.keep_probability_(torch.tensor([centred])))
    assert float((gates > 0.5).float().mean()) == pytest.approx(chance, abs=0.006)
    assert chance == pytest.approx(1 / (1 + exp(-entry.unit * centred)), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (method, {option: value})
        for method, names in (
            (HardConcrete, ("beta", "beta_end", "unit")),
            (Gumbel, ("temperature", "temperature_end", "unit", "growth")),
        )
        for option in names
        for value in (0.0, -1.0, float("nan"))
    ],
)
def test_a_logistic_gate_that_cannot_be_is_refused(
    method: type[HardConcrete | Gumbel], options: dict[str, float]
) -> None:
    (option,) = options
    with pytest.raises(RecipeError, match=f"method.{option} of {method.name} must be above 0"):
        method(**options)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("phase", [{}, {"hard": True}, {"noise": False}, {"annealed": 1.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_edge_popup_is_the_mask_forward_and_the_identity_backward(
    rescale: bool, phase: dict[str, Any], dtype: torch.dtype
) -> None:
    sample = sample_of(shift=0.5, rescale=rescale, **phase)
    score = start(EdgePopup()).requires_grad_()
    values, upstream = weight(dtype), torch.randn(SHAPE).to(dtype)
    effective = EdgePopup().effective(score, values, sample)
    mask = score.detach() > 0.5
    assert 0 < int(mask.sum()) < mask.numel()
    scale = 1 / sqrt(mask.float().mean()) if rescale else 1.0
    expected = torch.where(mask, values.float() * scale, 0.0)
    assert torch.allclose(effective.float(), expected, rtol=1e-5 if dtype.itemsize > 2 else 1e-2)
    effective.backward(upstream)
    assert score.grad is not None
    identity = upstream.float() * values.float() * scale
    assert torch.allclose(score.grad, identity, rtol=1e-5)
    assert score.grad.count_nonzero() == (upstream.float() * values.float()).count_nonzero()


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_edge_popup_meets_the_count_at_every_step(hard: bool, scope: Any) -> None:
    method = EdgePopup()
    scores = {
        name: method.start(weight(shape=(40, 50)), None, key) for key, name in enumerate("ab")
    }
    scores["b"] = scores["b"] + 0.01
    budget, phase = Budget(density=0.1, scope=scope), Phase(step=0, seed=0, hard=hard)
    shifts = method.shifts(scores, budget, 0.3, phase, dict.fromkeys(scores, 0.0))
    kept = {name: int((score > shifts[name]).sum()) for name, score in scores.items()}
    assert sum(kept.values()) == 1_200
    assert (kept["a"] == kept["b"] == 600) == (scope == "layer")


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("window", [0.5, 1.0])
def test_a_rounded_search_trains_the_gates_near_the_threshold_whatever_their_scale(
    scale: float, window: float
) -> None:
    method = Relaxed(window=window)
    phase = Phase(step=0, seed=0, hard=True, noise=False)
    found = {"w": (scale * weight()).requires_grad_()}
    shift = method.shifts(found, Budget(density=0.2), 0.2, phase, {"w": 0.0})["w"]
    distance = (found["w"].detach() - (shift + 0.5)).abs()
    near = distance < window * distance.square().mean().sqrt()
    values, upstream = weight(shape=(17, 12)).T, weight(shape=(17, 12)).T.cos()
    sample = Sample(phase=phase, shift=shift, key=1, rescale=False)
    method.effective(found["w"], values, sample).backward(upstream)
    assert 0.2 < float(near.float().mean()) < 0.9
    assert found["w"].grad is not None
    assert torch.allclose(found["w"].grad, torch.where(near, values * upstream, 0.0), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("narrowed", [0.0, 0.5, 1.0])
def test_a_search_that_is_never_rounded_sees_soft_gates_and_moves_scores_by_their_gradient(
    scale: float, narrowed: float
) -> None:
    method = Relaxed()
    phase = Phase(step=0, seed=0, narrowed=narrowed)
    found = {"w": (scale * weight()).requires_grad_()}
    shift = method.shifts(found, Budget(density=0.2), 0.2, phase, {"w": 0.0})["w"]
    distance = (found["w"].detach() - (shift + 0.5)).double()
    rms, width = distance.square().mean().sqrt(), 0.005**narrowed
    ones = torch.ones_like(found["w"])
    sample = Sample(phase=phase, shift=shift, key=1, rescale=False)
    gate = method.effective(found["w"], ones, sample)
    wide, narrow = ((0.5 + distance / (2 * w * rms)).clamp(0, 1) for w in (1.0, width))
    assert torch.allclose(gate.double(), 0.99 * narrow + 0.01 * wide, atol=1e-4)
    near = distance.abs() < rms
    inner = gate.detach()[near]
    assert bool(((inner > 0) & (inner < 1)).all())
    assert int((gate > 0.5).sum()) == round(0.2 * gate.numel())
    order = distance[near].argsort()
    assert bool((inner[order].diff() > 0).all()), "the gate has an inverse within the window"
    upstream = weight(shape=gate.shape).cos()
    gate.backward(upstream)
    assert found["w"].grad is not None
    # mirror descent: the gradient with respect to the gate, without the slope of the gate
    assert torch.allclose(found["w"].grad, torch.where(near, upstream, 0.0), rtol=1e-5)


def test_equal_scores_have_gates_of_one_half() -> None:
    method, phase = Relaxed(), Phase(step=0, seed=0, narrowed=0.0)
    score, ones = torch.full((3, 4), 0.7), torch.ones(3, 4)
    sample = Sample(phase=phase, shift=0.2, key=1, rescale=False)
    gate = method.effective(score, ones, sample)
    assert bool(gate.isfinite().all())


@pytest.mark.parametrize("wrong", [{"width": 0.0}, {"width_end": 2.0}, {"width_end": 0.0}])
def test_widths_that_do_not_narrow_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match="0 < width_end <= width"):
        Relaxed(**wrong)
