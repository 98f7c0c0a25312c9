"""The sparse kernels against torch's dense ones, on every odd shape."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from slt_compress.runtime.kernels import (
    Convolution,
    CsrLinear,
    Geometry,
    Linear,
    can_compile,
    sparse_rows,
)
from slt_compress.runtime.kernels.linear import tiles_of, tiles_within

compiled = pytest.mark.skipif(not can_compile(), reason="needs the extra fast")
SIZES = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 100, 129, 200]))
DENSITIES = st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def thinned(weight: torch.Tensor, density: float, seed: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return weight * (torch.rand(weight.shape, generator=chance) < density)


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal but for the order of the sums, which are of terms around 1."""
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    tokens=SIZES, rows=SIZES, columns=SIZES, density=DENSITIES, bias=st.booleans(),
    threads=st.sampled_from([1, 2, 3]), seed=st.integers(0, 99),
)  # fmt: skip
@pytest.mark.parametrize("kernel", ["csr", pytest.param("compiled", marks=compiled)])
def test_a_linear_product_is_the_dense_one(
    kernel, tokens, rows, columns, density, bias, threads, seed
):
    weight = thinned(random(seed, rows, columns), density, seed)
    added = random(seed + 1, rows) if bias else None
    inputs = random(seed + 2, tokens, columns)
    made = CsrLinear(weight, added) if kernel == "csr" else Linear(sparse_rows(weight, added))
    try:
        torch.set_num_threads(threads)
        found = made(inputs)
    finally:
        torch.set_num_threads(1)
    assert close(found, F.linear(inputs, weight, added))


@compiled
def test_threads_share_a_product_and_any_number_gives_the_same_bits():
    weight = thinned(random(0, 300, 400), 0.2, 0)
    product, inputs = Linear(sparse_rows(weight, None)), random(1, 333, 400)
    alone = product(inputs)
    for threads in (2, 4):
        torch.set_num_threads(threads)
        found = product(inputs)
        torch.set_num_threads(1)
        assert torch.equal(found, alone)
    assert close(alone, inputs @ weight.t())


@compiled
def test_rows_without_and_with_all_weights_and_more_columns_than_uint16_has():
    weight = torch.zeros(20, 70_001)
    weight[3] = random(0, 70_001) / 100
    weight[7, 70_000] = 2.0
    rows = sparse_rows(weight, None)
    assert (rows.places.dtype, rows.nonzero) == (torch.int32, 70_002)
    inputs = random(1, 9, 70_001)
    short = sparse_rows(weight[:, : 1 << 16], None)
    assert close(
        Linear(short)(inputs[:, : 1 << 16]), inputs[:, : 1 << 16] @ weight[:, : 1 << 16].t()
    )
    assert torch.equal(short.columns_of_weights(), torch.arange(1 << 16))
    assert close(Linear(rows)(inputs), inputs @ weight.t())
    assert sparse_rows(weight[:, : 1 << 16], None).places.dtype == torch.int16


@compiled
def test_inputs_of_any_strides_and_dimensions():
    weight = thinned(random(0, 24, 40), 0.3, 0)
    product = Linear(sparse_rows(weight, None))
    for inputs in (
        random(1, 40), random(1, 2, 3, 40), random(1, 40, 30).t(), random(1, 30, 80)[:, ::2],
        random(1, 30, 41)[:, 1:], random(1, 0, 40), random(1, 1, 40).expand(70, 40),
    ):  # fmt: skip
        assert close(product(inputs), F.linear(inputs, weight))


@compiled
def test_values_that_are_not_finite_stay_where_they_belong():
    weight = torch.zeros(20, 30)
    weight[:, 0] = 1.0
    weight[5, 1] = float("nan")
    inputs = torch.zeros(10, 30)
    inputs[3, 0] = float("inf")
    inputs[9, 0] = float("nan")
    found = Linear(sparse_rows(weight, None))(inputs)
    assert found[:, 5].isnan().all()
    others = found[:, [i for i in range(20) if i != 5]]
    assert others[3].isinf().all()
    assert others[9].isnan().all()
    assert not others[[0, 1, 2, 4, 5, 6, 7, 8]].any()


@given(st.integers(0, 300))
def test_tiles_cover_all_tokens_and_are_side_by_side(tokens):
    covered = [
        token
        for tiles in tiles_of(tokens)
        for i in range(tiles.count)
        for token in range(tiles.first + i * tiles.step, tiles.first + i * tiles.step + tiles.width)
    ]
    assert covered == list(range(len(covered)))
    assert tokens <= len(covered) < tokens + 32


@given(st.integers(8, 300))
def test_tiles_within_cover_all_tokens_and_no_more(tokens):
    covered = {
        token
        for tiles in tiles_within(tokens)
        for i in range(tiles.count)
        for token in range(tiles.first + i * tiles.step, tiles.first + i * tiles.step + tiles.width)
    }
    assert covered == set(range(tokens))


@compiled
@settings(deadline=None, max_examples=120)
@given(
    channels=st.integers(1, 9), outputs=st.sampled_from([1, 5, 16, 70]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    height=st.integers(1, 20), width=st.integers(1, 20), batch=st.sampled_from([0, 1, 3]),
    density=DENSITIES, last=st.booleans(), bias=st.booleans(),
)  # fmt: skip
def test_a_convolution_is_the_dense_one(
    channels, outputs, kernel, stride, padding, dilation, height, width, batch, density, last, bias
):
    geometry = Geometry(kernel=kernel, stride=(stride, stride), padding=padding, dilation=dilation)
    if min(geometry.outputs(height, width)) < 1:
        return
    weight = thinned(random(0, outputs, channels, *kernel), density, 0)
    added = random(1, outputs) if bias else None
    pictures = random(2, batch, channels, height, width)
    if last:
        pictures = pictures.contiguous(memory_format=torch.channels_last)
    convolution = Convolution(sparse_rows(weight.flatten(1), added), geometry)
    wanted = F.conv2d(pictures, weight, added, stride, padding, dilation)
    assert close(convolution(pictures), wanted)
    if batch:
        other = random(3, 1, channels, height + 1, width + 2)
        wanted = F.conv2d(other, weight, added, stride, padding, dilation)
        assert close(convolution(other), wanted)
    assert convolution.nbytes >= weight.count_nonzero() * 6
