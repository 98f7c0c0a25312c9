"""Passes: each gives the bits of the plain formula, at every edge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slt_compress.gates import Phase, Relaxed, Sample
from slt_compress.gates.passes import bits_between, times_bits, zero_outside, zero_up_to
from slt_compress.gates.sampled import sampled_weight

exactly = settings(deadline=None, derandomize=True, max_examples=60)
LOW = 2.0**-26
EDGES = [-1.0, -0.0, 0.0, LOW / 2, LOW, LOW * 1.5, 0.5, 1 - 2.0**-24, 1.0, 2.0]


def edged(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(size, generator=generator) * 2 - 0.5
    places = torch.randint(len(EDGES), (size,), generator=generator)
    some = torch.rand(size, generator=generator) < 0.3
    return torch.where(some, torch.tensor(EDGES)[places], values)


@exactly
@given(st.sampled_from([1, 7, 8, 9, 1000, 40_000]), st.integers(0, 99))
def test_bits_say_where_a_gate_is_between(size: int, seed: int) -> None:
    gates, values = edged(size, seed), torch.randn(size) + 3.0
    inside = (gates > LOW) & (gates < 1.0)
    bits = bits_between(gates, LOW, 1.0)
    assert bits.nbytes == -(-size // 8)
    assert torch.equal(times_bits(values, bits), values * inside)
    assert torch.equal(zero_outside(values, gates, LOW, 1.0), values * inside)
    assert torch.equal(zero_up_to(values, gates, 0.5), values * (gates > 0.5))


@exactly
@given(st.sampled_from([3, 40_000]), st.integers(0, 99))
def test_the_slope_of_the_clamp_is_one_exactly_inside(size: int, seed: int) -> None:
    law = Relaxed().law(Phase(step=0, seed=0))
    noisy = edged(size, seed)
    assert law.inside is not None
    slope, ones = law.slope_(noisy.clone()), torch.ones(size)
    assert torch.equal(zero_outside(ones, noisy, *law.inside), slope)
    assert torch.equal(times_bits(ones, bits_between(law.gate_(noisy), *law.inside)), slope)


@pytest.mark.parametrize("phase", [{}, {"hard": True}], ids=["soft", "rounded"])
def test_the_gradient_is_that_of_the_noise_of_the_forward_pass(phase: dict[str, bool]) -> None:
    score = torch.rand(70, 50, requires_grad=True)
    weight, above = torch.randn(70, 50), torch.randn(70, 50)
    found = Phase(step=0, seed=0, **phase)
    law = Relaxed().law(found)
    sample = Sample(phase=found, shift=0.1, key=3, rescale=False)
    sampled_weight(score, weight, sample, law).backward(above)
    noise = torch.empty(70, 50).normal_(-0.1, 0.5, generator=torch.Generator().manual_seed(3))
    slope = law.slope_(noise + score.detach())
    assert score.grad is not None
    assert 0 < int(slope.sum()) < slope.numel()
    assert torch.equal(score.grad, slope * above * weight)
