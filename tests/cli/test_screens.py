"""What a terminal of 80 and of 120 columns shows, with and without colour: golden files.

After a change on purpose: SLT_GOLDEN=write pytest tests/cli/test_screens.py, and look at the diff.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import RenderableType
from rich.text import Text as RichText

from slt_compress.cli.following import Following
from slt_compress.cli.live import lines
from slt_compress.cli.plan_outline import outline
from slt_compress.cli.report_view import report_parts, tickets_side_by_side
from slt_compress.cli.screen import Screen
from slt_compress.cli.sparklines import sparkline
from slt_compress.cli.subjects import hanging, line_of
from slt_compress.cli.summary import summary
from slt_compress.cli.ticket_tables import difference_table, ticket_table
from slt_compress.errors import TicketError
from slt_compress.evidence.grouping import common_name, grouped_layers
from slt_compress.evidence.reporting import Report
from slt_compress.searching.events import Advanced, HeldOut, Part
from slt_compress.searching.planning import Forecast, Plan
from slt_compress.searching.state import Step
from slt_compress.storage.quantities import seconds_in_words, shortened, shortened_apart
from slt_compress.tickets.deriving import Difference, SiteDifference
from slt_compress.tickets.listing import Listed

GOLDEN = Path(__file__).parent / "golden"
PARTS = {
    "attention.attention.query.weight": (768, 768),
    "attention.output.dense.weight": (768, 768),
    "intermediate.dense.weight": (3072, 768),
    "output.dense.weight": (768, 3072),
}


def vit_report(**changes: Any) -> Report:
    """The report of a made-up search of a ViT-base."""
    layers = [
        {"name": f"vit.encoder.layer.{block}.{part}", "shape": list(shape), "flips": 0,
         "total": shape[0] * shape[1], "kept": round(shape[0] * shape[1] * (0.08 + block / 250)),
         "sparsity": 1 - round(shape[0] * shape[1] * (0.08 + block / 250)) / (shape[0] * shape[1])}
        for block in range(12) for part, shape in PARTS.items()
    ]  # fmt: skip
    kept, gated = (sum(row[key] for row in layers) for key in ("kept", "total"))
    content: dict[str, Any] = {
        "source": {"kind": "hub", "source": "google/vit-base-patch16-224", "family": "transformers",
                   "revision": "3f49326eb077187dfe1c2a2bb15fbd74e6ab91e3",
                   "task": "image-classification"},
        "sparsity": {"target": 0.9, "achieved": 1 - kept / gated, "kept": kept, "gated": gated,
                     "parameters": 86_567_656, "achieved_parameters": (gated - kept) / 86_567_656},
        "metrics": {"dense": {"accuracy": 0.9412, "loss": 0.21, "kl": 0.0, "agreement": 1.0},
                    "hard": {"accuracy": 0.9135, "loss": 0.33, "kl": 0.08, "agreement": 0.94},
                    "soft": {"accuracy": 0.9150, "loss": 0.32, "kl": 0.08, "agreement": 0.94}},
        "controls": {"random": {"accuracy": 0.0105}, "magnitude": {"accuracy": 0.3120},
                     "shuffled": {"accuracy": 0.0095}},
        "layers": layers,
        "skipped": {**{f"vit.encoder.layer.{b}.output.dense.bias": "bias" for b in range(12)},
                    "classifier.weight": "task head of a pretrained checkpoint"},
        "sizes": {"dense": 346_270_624, "sparse-csr": 69_000_000, "bitmask": 46_000_000,
                  "coded": 41_000_000, "auto": 40_900_000, "mask": 5_000_000},
        "warnings": ["a sentence that is long enough to be folded in a terminal of eighty columns, "
                     "and short enough for one line of a hundred and twenty"],
        "expectations": ["disk: smaller", "GPU: nothing"],
        "recipe": {"pattern": "unstructured", "init": None},
        "search": {"method": "relaxed", "dataset": "timm/mini-imagenet", "test": "test",
                   "labels_match": True, "steps": 2000, "seed": 0,
                   "examples": {"train": 4500, "held_out": 500, "test": 2000}},
    }  # fmt: skip
    return Report.from_dict({**content, **changes}, Path("report"), TicketError)


def step(index: int, total: int = 1000) -> Step:
    share = index / total
    return Step(
        index=index, total=total, loss=2.0 * (1 - share) ** 2 + 0.4, density=1 - 0.9 * share,
        target=0.1, soft_metric=0.5 + share / 3, progress=share, seconds=index * 0.75, hard=False,
    )  # fmt: skip


def following(state: str) -> Following:
    """A search as it is watched at some moment."""
    watched = Following(clock=lambda: 100.0)
    watched.hear(Part("open"))
    if state == "start":
        return watched
    for index in range(0, 640, 2):
        if index in (200, 400, 600):
            watched.hear(HeldOut(index, 1.2 - index / 1000))
        watched.hear(step(index))
    if state == "measuring":
        clock = iter([0.0, *[30.0] * 9])
        watched.clock = lambda: next(clock)
        watched.hear(Part("controls"))
        watched.hear(Advanced(5, 32))
    if state == "long":
        watched.hear(step(199_999, 1_000_000))
    return watched


def plan() -> Plan:
    report = vit_report()
    memory = {"weights": 346_270_624, "total": 2_100_000_000}
    return Plan(
        source=report.source,
        sparsity={"target": 0.9, "gated": 84_934_656, "parameters": 86_567_656},
        sites=tuple({**row, "kind": "linear"} for row in report.layers), skipped=report.skipped,
        memory={"no": {"adam": memory, "sgd": memory}, "bf16": {"adam": memory}},
        sizes=report.sizes,
        forecast=Forecast(seconds_per_step=0.75, steps=2000, seconds=1500.0, note="two steps"),
        warnings=("nothing was measured",), expectations=report.expectations,
        command="slt-compress search google/vit-base-patch16-224 --target-sparsity 0.9",
    )  # fmt: skip


def difference() -> Difference:
    layers = tuple(
        SiteDifference(name=f"vit.encoder.layer.{b}.{part}", total=9, kept=(5, 4), both=3,
                       overlap=0.6, iou=0.5)
        for b in range(3) for part in PARTS
    )  # fmt: skip
    return Difference(overlap=0.6, iou=0.5, layers=layers)


def listed() -> list[Listed]:
    metrics = {"dense": {"accuracy": 0.9}, "hard": {"accuracy": 0.875}, "soft": None}
    return [
        Listed(path=Path("tickets/google-vit-base-patch16-224-relaxed-0.9"), sparsity=0.9,
               written="2026-11-28T12:00:00+00:00", method="relaxed", metrics=metrics),
        Listed(path=Path("tickets/google-vit-base-patch16-224-relaxed-0.9-2"), sparsity=0.9,
               written="2026-11-27T12:00:00+00:00", method="relaxed", metrics={}),
        Listed(path=Path("tickets/broken"), written="2026-11-26T12:00:00+00:00", error="damaged"),
    ]  # fmt: skip


Parts = Callable[[int], Iterable[RenderableType]]
TICKET = Path("tickets/google-vit-base-patch16-224-relaxed-0.9")
SCREENS: dict[str, Parts] = {
    "start": lambda width: lines(following("start"), width),
    "searching": lambda width: lines(following("searching"), width),
    "measuring": lambda width: lines(following("measuring"), width),
    "long": lambda width: lines(following("long"), width),
    "summary": lambda width: [
        hanging(line_of(*line), width) for line in summary(vit_report(), TICKET, 1534.0)
    ],
    "report": lambda width: report_parts(vit_report(), TICKET, 1534.0, width=width),
    "report-full": lambda width: report_parts(vit_report(), TICKET, None, width=width, full=True),
    "reports": lambda width: [
        tickets_side_by_side([("a", vit_report()), ("b", vit_report(metrics={}))], width)
    ],
    "plan": lambda width: outline(plan(), width=width),
    "difference": lambda width: [difference_table(difference(), width)],
    "tickets": lambda width: [ticket_table(listed(), width)],
}


def printed(parts: Iterable[RenderableType], width: int, *, colour: bool) -> str:
    out = io.StringIO()
    screen = Screen(file=out, width=width, force_terminal=True, legacy_windows=False,
                    color_system="truecolor" if colour else None, _environ={})  # fmt: skip
    for part in parts:
        screen.print(part, soft_wrap=isinstance(part, RichText))
    return out.getvalue()


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "plain"])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_is_the_golden_one(name: str, width: int, colour: bool) -> None:
    text = printed(SCREENS[name](width), width, colour=colour)
    kind = "colour" if colour else "plain"
    golden = GOLDEN / f"{name}-{width}-{kind}.txt"
    shown = text.replace("\x1b", "␛")
    if os.environ.get("SLT_GOLDEN") == "write":
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(shown, encoding="utf-8")
    assert shown == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("name", SCREENS)
def test_nothing_is_wider_than_the_screen(name: str, width: int) -> None:
    coloured = printed(SCREENS[name](width), width, colour=True)
    plain = printed(SCREENS[name](width), width, colour=False)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert bare == re.sub(r"\x1b\[[0-9;]*m", "", plain)
    # a path or command is never cut, so that it can be copied
    long = [line for line in bare.splitlines() if len(line.rstrip()) > width]
    assert all("slt-compress" in line or "tickets/" in line for line in long), long


@pytest.mark.parametrize("width", [40, 60, 80, 90, 120, 300])
@pytest.mark.parametrize("state", ["searching", "measuring", "long"])
def test_step_and_time_left_are_never_cut(state: str, width: int) -> None:
    watched = following(state)
    first, *_ = lines(watched, width)
    assert first.plain.endswith(watched.left())
    assert f"{watched.done:,}/{watched.total:,}" in first.plain
    if width >= 80:
        assert all(len(line.plain) <= width for line in lines(watched, width))
        assert "━" in first.plain or "─" in first.plain


def test_rows_never_look_the_same() -> None:
    names = [f"model.layers.{i}.block_sparse_moe.experts.{j}.w{k}.weight"
             for i in range(3) for j in range(3) for k in (1, 2)]  # fmt: skip
    for width in (8, 20, 40):
        shown = shortened_apart(names, width)
        assert len(set(shown)) == len(names)
    assert shortened_apart(names, 100) == names
    assert shortened("abcdefghij", 5) == "ab…ij"
    assert len(set(shortened_apart(["x" * 50, "x" * 49 + "y"], 10))) == 2


def test_equal_layers_are_one_row() -> None:
    groups = grouped_layers(vit_report().layers)
    assert [len(group.layers) for group in groups] == [12] * 4
    assert groups[0].name == "vit.encoder.layer.0-11.attention.attention.query.weight"
    assert sum(group.kept for group in groups) == vit_report().sparsity["kept"]
    assert common_name(["a.1.w", "a.3.w", "a.7.w", "a.9.w"]) == "a.1,3,7,….w"


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0] * 5, 3) == "▁▁▁"
    assert sparkline([], 5) == sparkline([1.0], 0) == sparkline([float("nan")], 4) == ""
    assert len(sparkline(range(1000), 20)) == 20


@pytest.mark.parametrize(("seconds", "words"), [
    (0.42, "0.4 s"), (9.97, "10 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3599.6, "1 h 00 min"),
    (3 * 3600 + 1200, "3 h 20 min"), (52 * 3600, "2 d 4 h"),
])  # fmt: skip
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert seconds_in_words(seconds) == words
