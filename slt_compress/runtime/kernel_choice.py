"""Choose between a layer's own computation and its kernels, by timing them interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, inf, log
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.parameters import is_conv1d
from slt_compress.runtime.sparse_layers import Choice, Kernel, tokens_of

# A kernel is used if it takes less than this share of the time of the dense computation: timings
# are noisy, and a model must not become slower.
MARGIN = 0.85
# Two rounds are enough if a kernel takes less than this share in both, or more than all of it.
CLEAR = 0.6
# Token counts that are always timed: a vector, a few, a tile of the compiled kernel, many.
COUNTS = (1, 8, 64, 512)
# Larger dense computations (in multiply-adds) are not timed: they turn out as this one does.
_LONGEST = 1 << 30
_ROUNDS = 5
# Seconds after which the rounds of a measurement end early.
_PATIENCE = 0.25
# A run shorter than this many seconds is repeated, at most so many times, and averaged.
_SHORT, _MOST = 0.001, 50
# A layer goes by one that was timed if its density is at most so many times as large.
_AS_DENSE = 1.1
# A layer that was not timed is not taken to gain as one gains that is so many times larger.
_MUCH_SMALLER = 8
# Layers of one shape are timed once if their counts of weights are within this factor.
_ALIKE = 1.5

Run = Callable[[], Any]


def time_interleaved(
    runs: Mapping[str, tuple[Run, Run]], rounds: int, patience: float, least: int = 2
) -> dict[str, list[float]]:
    """Seconds of each run by name; every round times all runs, after a round of warming up.

    Args:
        runs: by name: what prepares a run, and the run itself.
        rounds: at most this many.
        patience: seconds after which no further round is begun.
        least: at least this many rounds.
    """
    order, seconds = list(runs), {name: [_timed(*runs[name], 1)] for name in runs}
    times = max(1, min(_MOST, int(_SHORT / max(1e-9, *(t[0] for t in seconds.values())))))
    started = time.perf_counter()
    for number in range(rounds):
        if number >= least and time.perf_counter() - started > patience:
            break
        # Forwards and backwards in turn, as each run finds the caches that the one before left.
        order.reverse()
        for name in order:
            seconds[name].append(_timed(*runs[name], times))
    return {name: taken[1:] for name, taken in seconds.items()}


def ratios_of(taken: Mapping[str, Sequence[float]], one: str, other: str) -> list[float]:
    """Seconds of one run over those of the other, round by round, as the load changes over time."""
    return [a / b for a, b in zip(taken[one], taken[other], strict=True)]


def _timed(prepare: Run, run: Run, times: int) -> float:
    """Mean seconds of a run that is repeated."""
    prepare()
    before = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - before) / times


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A layer with kernels, and the shapes [batch, …] of the inputs that it got."""

    layer: nn.Module
    kernels: Mapping[str, Kernel]
    seen: Sequence[tuple[int, ...]]


def choose(candidates: Mapping[str, Candidate], seconds: float = inf) -> dict[str, Choice]:
    """The choice for each layer by name; similar layers are timed once.

    The largest layers are timed first. Those that are left after so many `seconds` do as the
    next denser one of their type that was timed, and compute densely where there is none.
    """
    kept = {name: _kept(candidate.layer) for name, candidate in candidates.items()}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, candidate in candidates.items():
        groups.setdefault(_likeness(candidate, kept[name]), []).append(name)
    # The densest stands for all of a group, so that none does worse than what was timed.
    leaders = {max(names, key=lambda name: kept[name]): names for names in groups.values()}
    choices: dict[str, Choice] = {}
    timed: dict[str, Choice] = {}
    started = time.perf_counter()
    for leader in sorted(leaders, key=lambda n: -_weight(candidates[n].layer).numel() * len(
        leaders[n]
    )):  # fmt: skip
        if not timed or time.perf_counter() - started < seconds:
            timed[leader] = _measured(candidates[leader])
            choice = timed[leader]
        else:
            choice = _presumed(leader, timed, candidates, kept)
        choices.update(dict.fromkeys(leaders[leader], choice))
    return choices


def _presumed(
    name: str,
    timed: Mapping[str, Choice],
    candidates: Mapping[str, Candidate],
    kept: Mapping[str, int],
) -> Choice:
    """The choice of the nearest layer that is about as dense, or denser, and was timed."""

    def density(of: str) -> float:
        return kept[of] / max(1, _weight(candidates[of].layer).numel())

    layer, own = candidates[name].layer, density(name)
    alike = [
        other
        for other in timed
        if type(candidates[other].layer) is type(layer)
        and density(other) * _AS_DENSE >= own
        and _weight(candidates[other].layer).numel() <= _weight(layer).numel() * _MUCH_SMALLER
    ]
    return timed[min(alike, key=density)] if alike else Choice({1: None})


def _kept(layer: nn.Module) -> int:
    return int(_weight(layer).count_nonzero())


def _weight(layer: nn.Module) -> Tensor:
    weight = layer._parameters["weight"]
    if weight is None:
        raise TypeError("a layer without a weight has no kernels")
    return weight


def _likeness(candidate: Candidate, kept: int) -> tuple[Any, ...]:
    layer = candidate.layer
    geometry = (layer.stride, layer.padding, layer.dilation) if _is_convolution(layer) else ()
    step = ceil(log(max(1, kept), _ALIKE))
    return (type(layer), tuple(_weight(layer).shape), geometry, step, tuple(candidate.seen))


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


def _measured(candidate: Candidate) -> Choice:
    """The fastest at every token count that matters."""
    layer, points = candidate.layer, {}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for shape in _shapes(candidate):
            inputs = torch.randn(shape, generator=generator)
            points[tokens_of(layer, inputs)] = _winner(candidate, inputs)
    return Choice(points)


def _shapes(candidate: Candidate) -> Iterable[tuple[int, ...]]:
    """Shapes of inputs to time, none of them larger than necessary."""
    layer, weight = candidate.layer, _weight(candidate.layer)
    if _is_convolution(layer):
        return candidate.seen
    columns = weight.shape[0] if is_conv1d(layer) else weight.shape[1]
    most = max(COUNTS[-2], min(COUNTS[-1], _LONGEST // max(1, weight.numel())))
    seen = (tokens_of(layer, torch.empty(shape, device="meta")) for shape in candidate.seen)
    counts = {min(count, most) for count in (*COUNTS, *seen) if count}
    return [(count, columns) for count in sorted(counts)]


def _nothing() -> None:
    """What a run needs that needs no preparation."""


def _winner(candidate: Candidate, inputs: Tensor) -> str | None:
    layer = candidate.layer
    runs: dict[str, tuple[Run, Run]] = {
        "": (_nothing, lambda: type(layer).forward(layer, inputs)),
        **{name: (_nothing, partial(k, inputs)) for name, k in candidate.kernels.items()},
    }
    quick = time_interleaved(runs, 2, 0.0)
    best = min(candidate.kernels, key=lambda name: min(quick[name]))
    ratios = ratios_of(quick, best, "")
    if max(ratios) < CLEAR or min(ratios) > 1.0:
        return best if max(ratios) < CLEAR else None
    longer = time_interleaved({"": runs[""], best: runs[best]}, _ROUNDS, _PATIENCE)
    least = min(longer[best]) / min(longer[""])
    return best if max(least, median(ratios_of(longer, best, ""))) < MARGIN else None
