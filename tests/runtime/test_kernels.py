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
from slt_compress.runtime.kernels import compiled as compiled_kernels
from slt_compress.runtime.kernels.dots import Features
from slt_compress.runtime.kernels.job_layout import LANES
from slt_compress.runtime.kernels.linear import narrow_tiles, tiles_of, tiles_within
from slt_compress.runtime.kernels.programs import program

compiled = pytest.mark.skipif(not can_compile(), reason="needs the extra fast")
SIZES = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 100, 129, 200]))
DENSITIES = st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def thinned(weight: torch.Tensor, density: float, seed: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return weight * (torch.rand(weight.shape, generator=chance) < density)


def near(found: torch.Tensor, wanted: torch.Tensor, share: float) -> bool:
    """Equal but for rounding, by a share of the largest."""
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    return found.shape == wanted.shape and bool(
        ((found - wanted).abs() <= share * largest + 1e-6).all()
    )


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
@settings(deadline=None, max_examples=60)
@given(
    tokens=SIZES, rows=SIZES, columns=SIZES, density=DENSITIES, bias=st.booleans(),
    threads=st.sampled_from([1, 2, 3]), seed=st.integers(0, 99),
)  # fmt: skip
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_product_in_lower_precision_is_that_of_the_rounded_numbers(
    precision, tokens, rows, columns, density, bias, threads, seed
):
    weight = thinned(random(seed, rows, columns), density, seed)
    added = random(seed + 1, rows) if bias else None
    inputs = random(seed + 2, tokens, columns)
    made = Linear(sparse_rows(weight, added, filled=True), precision)
    try:
        torch.set_num_threads(threads)
        found = made(inputs)
    finally:
        torch.set_num_threads(1)
    wanted = F.linear(*rounded(precision, inputs, weight), added)
    assert near(found, F.linear(inputs, weight, added) if tokens == 1 else wanted, 2e-3)
    assert torch.equal(made.dense(), weight)


def rounded(precision: str, inputs: torch.Tensor, weight: torch.Tensor):
    """What a product in lower precision multiplies."""
    if precision == "bf16":
        return inputs.bfloat16().float(), weight.bfloat16().float()
    return tuple(
        (matrix / scale).round() * scale
        for matrix in (inputs, weight)
        for scale in [matrix.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127]
    )


@compiled
@pytest.mark.parametrize("features", [Features(), Features(bf16=True), Features(vnni=True)])
@pytest.mark.parametrize("lanes", LANES)
def test_every_program_is_valid_with_and_without_instructions_for_it(features, lanes):
    from llvmlite import binding

    for kind in ("linear-bf16-16", "linear-int8-16", "linear-int8-32", "vector-16", "planes"):
        binding.parse_assembly(program(kind, features, lanes)).verify()


@compiled
def test_plain_vectors_give_what_the_instructions_for_it_give(monkeypatch):
    weight = thinned(random(0, 40, 70), 0.3, 0)
    inputs = random(1, 90, 70)
    with_them = [Linear(sparse_rows(weight, None, filled=True), p) for p in ("bf16", "int8")]
    found = [product(inputs) for product in with_them]
    monkeypatch.setattr(compiled_kernels, "precisions", lambda: ())
    compiled_kernels._compiled.cache_clear()
    try:
        for product, before in zip(with_them, found, strict=True):
            assert near(product(inputs), before, 1e-5)
    finally:
        compiled_kernels._compiled.cache_clear()


@compiled
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("odd", [float("inf"), float("nan"), -float("inf")])
def test_in_lower_precision_a_token_that_is_not_finite_stays_alone(precision, odd):
    weight = thinned(random(0, 20, 30), 0.5, 0)
    inputs = random(1, 10, 30)
    wanted = Linear(sparse_rows(weight, None, filled=True), precision)(inputs)
    inputs[3, 7] = odd
    found = Linear(sparse_rows(weight, None, filled=True), precision)(inputs)
    others = [i for i in range(10) if i != 3]
    assert torch.equal(found[others], wanted[others])
    touched = weight[:, 7] != 0
    assert not found[3, touched].isfinite().any()


@compiled
@given(st.integers(1, 400), st.sampled_from(LANES))
def test_narrow_tiles_cover_all_tokens(tokens, lanes):
    tiles = narrow_tiles(tokens, lanes)
    ends = [tile.first + tile.count * tile.width for tile in tiles]
    assert [tile.first for tile in tiles] == [0, *ends][: len(tiles)]
    assert tokens <= ends[-1] < tokens + 4 * lanes


@compiled
@given(rows=st.integers(1, 200), parts=st.integers(1, 12), density=DENSITIES, filled=st.booleans())
def test_parts_of_rows_cover_all_and_begin_at_panels(rows, parts, density, filled):
    matrix = sparse_rows(thinned(random(0, rows, 20), density, 0), None, filled=filled)
    bounds = matrix.parts_of(parts).tolist()
    assert (bounds[0], bounds[-1], len(bounds)) == (0, rows, parts + 1)
    assert bounds == sorted(bounds)
    assert all(bound % 16 == 0 or bound == rows for bound in bounds)


@compiled
def test_parts_have_equal_shares_of_the_weights_and_not_of_the_rows():
    weight = random(0, 320, 400)
    weight[:160, 40:] = 0.0  # a tenth of what the others have
    rows = sparse_rows(weight, None)
    middle = int(rows.parts_of(2)[1])
    kept = [int(weight[part].count_nonzero()) for part in (slice(0, middle), slice(middle, None))]
    assert 0.8 < kept[0] / kept[1] < 1.25


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
