"""Seeded initial weights whose bits are the same on every platform and under every version.

Random bits come from numpy's Philox counter generator, whose raw stream is fixed by contract, keyed
by (seed, name of the weight). Values are made from these integers with + - * / sqrt and frexp in
float64 alone, which IEEE 754 rounds exactly; library functions such as log or cos differ between
platforms and are not used.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slt_compress.errors import SourceError

SCHEMES = ("signed-constant", "kaiming-normal", "kaiming-uniform", "uniform:A", "default")

_CHUNK = 1 << 20  # values made at a time: bounds the float64 scratch memory to some 8 MiB arrays
_Floats = NDArray[np.float64]
_Words = NDArray[np.uint64]

# Coefficients of algorithm AS 241 (PPND16), Wichura 1988, highest power first: a rational function
# for the middle of the normal distribution, one for its shoulders, one for its far tails.
_MIDDLE = (
    (
        2509.0809287301226727,
        33430.575583588128105,
        67265.770927008700853,
        45921.953931549871457,
        13731.693765509461125,
        1971.5909503065514427,
        133.14166789178437745,
        3.387132872796366608,
    ),
    (
        5226.495278852854561,
        28729.085735721942674,
        39307.89580009271061,
        21213.794301586595867,
        5394.1960214247511077,
        687.1870074920579083,
        42.313330701600911252,
        1.0,
    ),
)
_SHOULDER = (
    (
        7.7454501427834140764e-4,
        0.0227238449892691845833,
        0.24178072517745061177,
        1.27045825245236838258,
        3.64784832476320460504,
        5.7694972214606914055,
        4.6303378461565452959,
        1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9,
        5.475938084995344946e-4,
        0.0151986665636164571966,
        0.14810397642748007459,
        0.68976733498510000455,
        1.6763848301838038494,
        2.05319162663775882187,
        1.0,
    ),
)
_TAIL = (
    (
        2.01033439929228813265e-7,
        2.71155556874348757815e-5,
        0.0012426609473880784386,
        0.026532189526576123093,
        0.29656057182850489123,
        1.7848265399172913358,
        5.4637849111641143699,
        6.6579046435011037772,
    ),
    (
        2.04426310338993978564e-15,
        1.4215117583164458887e-7,
        1.8463183175100546818e-5,
        7.868691311456132591e-4,
        0.0148753612908506148525,
        0.13692988092273580531,
        0.59983220655588793769,
        1.0,
    ),
)
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


def parse_scheme(scheme: str) -> float | None:
    """Check the name of a scheme; the A of `uniform:A`, else None.

    Raises:
        SourceError: no such scheme, or A is not a positive finite number.
    """
    name, colon, value = scheme.partition(":")
    if name == "uniform" and colon:
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not (math.isfinite(bound) and bound > 0):
            raise SourceError(f"uniform:A needs a positive number for A, not {value!r}")
        return bound
    if scheme not in SCHEMES or scheme == "uniform:A":
        raise SourceError(
            f"no initialisation is called {scheme!r}; use one of {', '.join(SCHEMES)}"
        )
    return None


def initial_tensor(
    name: str, shape: tuple[int, ...], *, scheme: str, seed: int, fan_in: int
) -> Tensor:
    """The initial value of the weight called `name`: an fp32 tensor of `shape`.

    `signed-constant` is +-sqrt(2 / fan_in), `kaiming-normal` has that standard deviation,
    `kaiming-uniform` is uniform within +-sqrt(6 / fan_in) (He et al. 2015), `uniform:A` within +-A.

    Raises:
        SourceError: `scheme` is not one that a seed determines.
    """
    bound = parse_scheme(scheme)
    if scheme == "default":
        raise SourceError("the scheme 'default' is the library's own; no seed determines its bits")
    fan_in = max(fan_in, 1)
    make: Callable[[_Words], _Floats]
    if bound is not None:
        make = partial(_uniform, bound=bound)
    elif scheme == "kaiming-uniform":
        make = partial(_uniform, bound=math.sqrt(6 / fan_in))
    elif scheme == "kaiming-normal":
        make = partial(_normal, std=math.sqrt(2 / fan_in))
    else:
        make = partial(_signs, size=math.sqrt(2 / fan_in))
    values = np.empty(math.prod(shape), dtype=np.float32)
    for start, words in _random_words(name, seed, values.size):
        values[start : start + words.size] = make(words)
    return torch.from_numpy(values).reshape(shape)


def _random_words(name: str, seed: int, count: int) -> Iterator[tuple[int, _Words]]:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
    for start in range(0, count, _CHUNK):
        yield start, stream.random_raw(min(_CHUNK, count - start))


def _open_unit(words: _Words) -> _Floats:
    # 52 bits and a half: an exact double, symmetric about 1/2 and never 0 or 1.
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def _signs(words: _Words, *, size: float) -> _Floats:
    return np.where(words >> np.uint64(63) == 1, size, -size)


def _uniform(words: _Words, *, bound: float) -> _Floats:
    return bound * (2.0 * _open_unit(words) - 1.0)


def _normal(words: _Words, *, std: float) -> _Floats:
    return std * normal_quantile(_open_unit(words))


def normal_quantile(p: _Floats) -> _Floats:
    """Inverse of the standard normal distribution function for p in (0, 1), by AS 241 (PPND16)."""
    centred = p - 0.5
    out = centred * _ratio(_MIDDLE, 0.180625 - centred * centred)
    outer = np.abs(centred) > 0.425
    edge = centred[outer]
    depth = np.sqrt(-_log(np.where(edge < 0, p[outer], 1.0 - p[outer])))
    value = np.where(depth <= 5.0, _ratio(_SHOULDER, depth - 1.6), _ratio(_TAIL, depth - 5.0))
    out[outer] = np.where(edge < 0, -value, value)
    return out


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: _Floats) -> _Floats:
    top, bottom = (np.full_like(x, series[0]) for series in coefficients)
    for above, below in zip(coefficients[0][1:], coefficients[1][1:], strict=True):
        top = top * x + above
        bottom = bottom * x + below
    return top / bottom


def _log(x: _Floats) -> _Floats:
    """Natural logarithm of positive doubles: log(m 2^e) = e log 2 + 2 artanh((m - 1) / (m + 1))."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < _SQRT_HALF
    mantissa = np.where(low, 2.0 * mantissa, mantissa)
    exponent = exponent.astype(np.float64) - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s  # at most 0.0295: twelve terms reach the last bit of a double
    series = np.full_like(s, 1.0 / 23.0)
    for odd in range(21, 0, -2):
        series = series * square + 1.0 / odd
    return exponent * _LN2 + 2.0 * s * series
