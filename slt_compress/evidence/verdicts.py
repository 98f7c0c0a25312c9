"""Verdicts: the one metric that tells most, of the dense and the masked model, and its doubt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from slt_compress.tickets import Metrics

# The metric that tells most, by what a model has: shares that are right, then other figures.
_SHARES = ("accuracy", "map", "f1", "agreement")
_HEADLINES = (
    "accuracy", "map", "f1", "pearson", "spearman", "perplexity", "agreement", "kl", "loss"
)  # fmt: skip
LESS_IS_BETTER = ("loss", "kl", "perplexity")
# Shares that count examples, so that a binomial interval holds for them.
_COUNTED = ("accuracy", "agreement")
_ANSWERS_ONCE = (
    "image-classification", "text-classification", "audio-classification",
    "visual-question-answering", "zero-shot-image-classification",
)  # fmt: skip
_Z = 1.959964  # of the normal distribution, two-sided at 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the mask costs, in one metric.

    Attributes:
        metric: its name.
        dense: of the dense model; None where it has none, as in agreement with it.
        hard: of the hard-masked model.
        low, high: 95 % interval of `hard`; None where the metric counts no examples.
        examples: how many it was measured on; None where that is not known.
        controls: of the masks with the same counts.
    """

    metric: str
    dense: float | None
    hard: float
    low: float | None
    high: float | None
    examples: int | None
    controls: Mapping[str, float]

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share, best shown in per cent."""
        return self.metric in _SHARES

    def shown(self, value: float) -> str:
        """A value of the metric as people read it."""
        return f"{100 * value:.2f} %" if self.is_share else f"{value:.4g}"

    def sentence(self) -> str:
        """Dense to masked, and how sure that is."""
        start = "" if self.dense is None else f"{self.shown(self.dense)} dense → "
        text = f"{self.metric} {start}{self.shown(self.hard)} masked"
        if self.low is not None and self.high is not None:
            low, high = (f"{100 * value:.1f}" for value in (self.low, self.high))
            text += f" (95 % interval {low} to {high} %, {self.examples:,} examples)"
        elif self.examples is not None:
            text += f" ({self.examples:,} examples)"
        return text


def verdict_of(
    metrics: Metrics, controls: Metrics, *, examples: int | None, task: str | None
) -> Verdict | None:
    """The verdict on metrics by model and by control; None where nothing was measured.

    Args:
        metrics, controls: as in a report.
        examples: how many the metrics are of; None where that is not known.
        task: of the model. Those that answer once for each example get an interval.
    """
    hard, dense = metrics.get("hard") or {}, metrics.get("dense") or {}
    name = next((name for name in _HEADLINES if name in hard), None)
    if name is None:
        return None
    low = high = None
    if examples and name in _COUNTED and task in _ANSWERS_ONCE:
        low, high = wilson(hard[name], examples)
    measured = {kind: (values or {}).get(name) for kind, values in controls.items()}
    return Verdict(
        metric=name, dense=dense.get(name), hard=hard[name], low=low, high=high, examples=examples,
        controls={kind: value for kind, value in measured.items() if value is not None},
    )  # fmt: skip


def wilson(share: float, examples: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `examples` (Wilson 1927)."""
    share = min(1.0, max(0.0, share))
    z2 = _Z * _Z / examples
    middle = (share + z2 / 2) / (1 + z2)
    half = _Z * sqrt(share * (1 - share) / examples + z2 / (4 * examples)) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def is_chance(accuracy: float, classes: int, examples: int) -> bool:
    """Whether an accuracy is no better than guessing among `classes`, as far as one can tell."""
    low, _ = wilson(accuracy, examples)
    return classes > 1 and low <= 1.0 / classes
