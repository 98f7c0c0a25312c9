"""Telling: a report in lines of plain words, for the terminal and for pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slt_compress.evidence.grouping import grouped_names
from slt_compress.evidence.reporting import Report
from slt_compress.storage.quantities import bytes_in_words, seconds_in_words

_LISTED = 3  # names of skipped parameters for each reason
RUNTIMES = (
    'a smaller file, and speed on CPUs with load(…, runtime="auto"); nothing on GPUs and in other '
    "runtimes but for 2:4 and whole units: docs/sparsity-and-speed.md"
)


def outcome(report: Report) -> Iterator[tuple[str, str]]:
    """What a mask costs and what it saves: metric, controls, sparsity and bytes."""
    verdict = report.verdict
    if verdict is None:
        yield "measured", "nothing: this mask has no metrics"
    else:
        first, _, rest = verdict.sentence().partition(" ")
        yield first, rest
        if verdict.controls:
            shown = (f"{kind} {verdict.shown(v)}" for kind, v in verdict.controls.items())
            yield "controls", f"{', '.join(shown)} (masks with as many weights in every layer)"
    yield "sparsity", sparsity_line(report)
    yield "bytes", bytes_line(report)


def sparsity_line(report: Report) -> str:
    """Both denominators, and the counts behind them."""
    counts = report.sparsity
    text = (
        f"{100 * counts['achieved']:.2f} % of the gated weights are removed, "
        f"{100 * counts['achieved_parameters']:.2f} % of all parameters: {counts['kept']:,} of "
        f"{counts['gated']:,} are kept, of {counts['parameters']:,} parameters in all"
    )
    units = counts.get("units")
    if units is not None:
        pattern = report.recipe.get("pattern")
        text += f"; {units['kept']:,} of {units['gated']:,} units of the pattern {pattern}"
    permuted = sum(bool(layer.get("permuted")) for layer in report.layers)
    if permuted:
        pattern = report.recipe.get("pattern")
        text += f"; {permuted} of {len(report.layers)} masks are {pattern} in a stored order"
    gains, tuned = counts.get("gains", 0), counts.get("tuned", 0)
    if gains or tuned:
        share = 100 * counts.get("tuned_parameters", 0.0)
        text += (
            f"; {gains:,} gains of kept units and {tuned:,} norms and biases were trained beside "
            f"the mask, {share:.2f} % of all parameters"
        )
    flips = counts.get("flips", 0)
    return f"{text}; {flips:,} of them with their sign flipped" if flips else text


def bytes_line(report: Report) -> str:
    """The bytes of the dense tensors, and of the smallest format."""
    dense, best = report.sizes["dense"], best_format(report)
    size = report.sizes[best]
    return (
        f"{bytes_in_words(dense)} dense → {bytes_in_words(size)} as {best} "
        f"({100 * size / dense:.1f} %; the dense export stays {bytes_in_words(dense)})"
    )


def best_format(report: Report) -> str:
    """The smallest format of a report that holds the weights."""
    return smallest_format(report.sizes)


def smallest_format(sizes: Mapping[str, int]) -> str:
    """The smallest format that holds the weights; `auto` unless another one is smaller still."""
    whole = {name: size for name, size in sizes.items() if name != "mask"}
    return min(whole, key=lambda name: (whole[name], name != "auto"))


def skipped_lines(skipped: Mapping[str, str], *, full: bool) -> Iterator[tuple[str, str]]:
    """Parameters that are not gated, by reason; every one of them if `full`."""
    if full:
        yield from (("skipped", f"{name}: {reason}") for name, reason in skipped.items())
        return
    by_reason: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        by_reason.setdefault(reason.partition(": the same tensor")[0], []).append(name)
    for reason, names in by_reason.items():
        yield "skipped", f"{_counted(names)}: {reason}"


def _counted(names: Sequence[str]) -> str:
    """How many parameters, and the first of them with equal ones in one name."""
    groups = grouped_names(names)
    listed = ", ".join(name for name, _ in groups[:_LISTED]) + ", …" * (len(groups) > _LISTED)
    if len(names) == 1:
        return listed
    biases = all(name.rpartition(".")[2] == "bias" for name in names)
    return f"{len(names):,} {'biases' if biases else 'parameters'} ({listed})"


def source_line(report: Report) -> str:
    """Where the weights come from, and what the model is."""
    source = report.source
    revision = source.get("revision")
    at = f" at revision {str(revision)[:12]}" if revision else ""
    init = report.recipe.get("init")
    random = f", random weights ({init})" if init else ""
    return f"{source.get('source')}{at} ({source.get('family')}, {source.get('task')}){random}"


def searched(report: Report, seconds: float | None = None) -> str:
    """Method, steps, data set, examples, seed and time of the search, as far as is known."""
    search = report.search
    parts = [str(search.get("method", "not searched"))]
    if search.get("steps"):
        parts.append(f"{search['steps']:,} steps")
    pattern = report.recipe.get("pattern", "unstructured")
    if pattern != "unstructured":
        parts.append(f"pattern {pattern}")
    if "dataset" in search:
        parts.append(f"on {search['dataset']}{_examples(search.get('examples', {}), search)}")
    if "seed" in search:
        parts.append(f"seed {search['seed']}")
    if seconds is not None:
        parts.append(seconds_in_words(seconds))
    return ", ".join(parts)


def _examples(examples: Mapping[str, int], search: Mapping[str, Any]) -> str:
    if not {"train", "test"} <= examples.keys():
        return ""
    return (
        f" ({examples['train']:,} examples to search on, {examples['test']:,} of "
        f"{search.get('test', 'test')} to measure on)"
    )
