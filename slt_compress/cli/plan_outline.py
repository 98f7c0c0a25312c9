"""The outline of a plan: a tree of the sites, in which equal layers share a branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.tree import Tree

from slt_compress.cli.screen import Text
from slt_compress.cli.subjects import hanging, line_of
from slt_compress.evidence.telling import RUNTIMES, skipped_lines, smallest_format
from slt_compress.searching.planning import Plan
from slt_compress.storage.quantities import bytes_in_words, seconds_in_words

_TIMES = "×"  # noqa: RUF001


@dataclass(slots=True)
class Branch:
    """A module of the tree: its children by name, and its site if it is one.

    `count` is the number of equal modules that this one stands for.
    """

    below: dict[str, Branch] = field(default_factory=dict)
    site: Mapping[str, Any] | None = None
    count: int = 1

    @property
    def gated(self) -> int:
        """Gated weights below one of the modules that this one stands for."""
        own = prod(self.site["shape"]) if self.site is not None else 0
        return own + sum(branch.gated * branch.count for branch in self.below.values())

    def shape(self) -> tuple[Any, ...]:
        """A key that is the same for equal branches."""
        own = None if self.site is None else (self.site["kind"], tuple(self.site["shape"]))
        return own, tuple((n, b.count, b.shape()) for n, b in self.below.items())


def outline(
    plan: Plan, *, width: int = 120, full: bool = False, precision: str = "no"
) -> Iterator[RenderableType]:
    """The parts of a plan as a person reads it: the answers first, the tables if `full`."""

    def line(subject: str, text: str, style: str = "") -> Text:
        return hanging(line_of(subject, text), width, style)

    yield line("source", f"{plan.source['source']} ({plan.source['task']})")
    for warning in plan.warnings:
        yield line("note", warning, "yellow")
    yield line("sites", _gated(plan))
    yield line("memory", _needed(plan, precision))
    yield line("bytes", _smallest(plan.sizes))
    yield line("time", _time(plan))
    yield _tree(plan)
    yield from _skipped(plan.skipped, width, full=full)
    if full:
        yield _memory(plan)
        yield _sizes(plan.sizes)
        for text in plan.expectations:
            yield line("expect", text)
    else:
        yield line("expect", RUNTIMES)
        yield line("", "all of memory, bytes and runtimes: --full")
    yield line("next", plan.command)


def _gated(plan: Plan) -> str:
    sparsity = plan.sparsity
    kept = sparsity["gated"] - round(sparsity["target"] * sparsity["gated"])
    return (
        f"{sparsity['gated']:,} weights at {len(plan.sites)} sites would be gated, "
        f"{100 * sparsity['gated'] / sparsity['parameters']:.1f} % of {sparsity['parameters']:,} "
        f"parameters; {kept:,} would be kept at a sparsity of {sparsity['target']:g}"
        + "".join(f"; {text}" for text in _trained(sparsity))
    )


def _needed(plan: Plan, precision: str) -> str:
    """What a search of this precision needs with the first optimizer, which needs the most."""
    precision = precision if precision in plan.memory else next(iter(plan.memory))
    rows = plan.memory[precision]
    optimizer, parts = next(iter(rows.items()))
    how = "" if optimizer == "none" else f", with {optimizer} and precision {precision}"
    return f"about {bytes_in_words(parts['total'])} besides activations{how}"


def _smallest(sizes: Mapping[str, int]) -> str:
    best = smallest_format(sizes)
    share = 100 * sizes[best] / sizes["dense"]
    return (
        f"{bytes_in_words(sizes['dense'])} dense → {bytes_in_words(sizes[best])} as {best} "
        f"({share:.1f} %)"
    )


def _trained(sparsity: Mapping[str, Any]) -> Iterator[str]:
    """A line on what would be trained beside the mask, where anything would."""
    gains, tuned = sparsity.get("gains", 0), sparsity.get("tuned", 0)
    if gains or tuned:
        yield (
            f"{gains:,} gains of kept units and {tuned:,} norms and biases would be trained "
            f"beside the mask, {(gains + tuned) / sparsity['parameters']:.2%} of all parameters"
        )


def _tree(plan: Plan) -> Tree:
    root = branches(plan.sites)
    tree = Tree(Text("sites", "bold"))
    _grow(tree, root)
    return tree


def branches(sites: Sequence[Mapping[str, Any]]) -> Branch:
    """The sites as a tree; a run of equal numbered modules is one branch, such as `0-11`."""
    root = Branch()
    for site in sites:
        place = root
        for part in site["name"].split("."):
            place = place.below.setdefault(part, Branch())
        place.site = site
    _fold(root)
    return root


def _fold(branch: Branch) -> None:
    for child in branch.below.values():
        _fold(child)
    folded: dict[str, Branch] = {}
    first = last = ""
    for name, child in branch.below.items():
        alike = name.isdigit() and last.isdigit() and int(name) == int(last) + 1
        run = f"{first}-{last}" if first != last else first
        if alike and folded[run].shape() == child.shape():
            joined = folded.pop(run)
            joined.count += 1
            folded[f"{first}-{name}"] = joined
        else:
            folded[name] = child
            first = name
        last = name
    branch.below = folded


def _grow(tree: Tree, branch: Branch) -> None:
    for name, child in branch.below.items():
        while child.site is None and child.count == 1 and len(child.below) == 1:
            inner, child = next(iter(child.below.items()))
            name = f"{name}.{inner}"
        label = Text(name)
        if child.site is not None:
            label.append(f"  {_TIMES.join(map(str, child.site['shape']))}", "cyan")
            label.append(f"  {child.site['kind']}", "dim")
        else:
            times = f"{child.count} {_TIMES} " if child.count > 1 else ""
            label.append(f"  {times}{child.gated:,}", "bold")
        _grow(tree.add(label), child)


def _skipped(skipped: Mapping[str, str], width: int, *, full: bool) -> Iterator[RenderableType]:
    for subject, text in skipped_lines(skipped, full=full):
        yield hanging(line_of(subject, text), width)


def _memory(plan: Plan) -> Table:
    table = Table(title="Memory of the search, without activations")
    columns = dict.fromkeys(
        part for rows in plan.memory.values() for parts in rows.values() for part in parts
    )
    table.add_column("precision, optimizer")
    for name in columns:
        table.add_column(name, justify="right")
    for precision, rows in plan.memory.items():
        for optimizer, parts in rows.items():
            sizes = (bytes_in_words(parts[name]) if name in parts else "" for name in columns)
            table.add_row(f"{precision}, {optimizer}", *sizes)
    return table


def _sizes(sizes: Mapping[str, int]) -> Table:
    table = Table("format", "bytes", "of dense", title="Expected bytes of the model's tensors")
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}", f"{100 * size / sizes['dense']:.1f} %")
    return table


def _time(plan: Plan) -> str:
    forecast = plan.forecast
    if forecast.seconds_per_step is None:
        return forecast.note
    total = ""
    if forecast.seconds is not None:
        total = f", {seconds_in_words(forecast.seconds)} for {forecast.steps:,} steps"
    return f"about {forecast.seconds_per_step:.2f} s per step{total} ({forecast.note})"
