"""The content of a page: what it shows of each ticket or exported folder, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from slt_compress.artifacts import describe_artifact, is_artifact
from slt_compress.errors import ArtifactError
from slt_compress.evidence.cards import how_to_load
from slt_compress.evidence.reporting import Report, make_report
from slt_compress.evidence.telling import outcome, searched, source_line
from slt_compress.evidence.verdicts import LESS_IS_BETTER
from slt_compress.pages.histograms import histograms
from slt_compress.pages.images import chosen_layers, mask_image
from slt_compress.storage.files import read_json
from slt_compress.storage.outside import visible
from slt_compress.tickets import Ticket, read_history, read_ticket
from slt_compress.tickets.card import own_loading
from slt_compress.tickets.run_facts import seconds_of

_POINTS = 400  # of a curve
_CURVES = {"loss": "loss", "soft_metric": "batch score"}
_OF_A_TICKET = "an exported folder has none: make the page of its ticket"


def page_content(folder: Path) -> dict[str, Any]:
    """What a page shows of one folder.

    Raises:
        SltError: there is no such folder, or it is damaged.
    """
    if is_artifact(folder):
        file = folder / "report.json"
        report = Report.from_dict(read_json(file, ArtifactError), file, ArtifactError)
        loading = how_to_load(describe_artifact(folder).format, report.source, folder.name)
        exported: dict[str, Any] = _seen({
            **_of_report(folder, report, None), "loading": _code(loading), "kind": "artifact",
            "images": [], "histograms": [], "histogram_note": _OF_A_TICKET,
            "image_note": _OF_A_TICKET, "curves": {},
        })  # fmt: skip
        return exported
    ticket = read_ticket(folder)
    report = make_report(ticket)
    origin = {"family": ticket.origin.get("family")}
    content: dict[str, Any] = _seen({
        **_of_report(folder, report, seconds_of(folder)), "kind": "ticket",
        "loading": "\n".join(own_loading(f"tickets/{folder.name}", origin)),
        **_of_masks(ticket, report), "curves": _curves(read_history(ticket)),
    })  # fmt: skip
    return content


def _of_report(folder: Path, report: Report, seconds: float | None) -> dict[str, Any]:
    verdict = report.verdict
    return {
        "name": folder.absolute().name,
        "source": source_line(report),
        "lines": [list(line) for line in outcome(report)],
        "search": searched(report, seconds),
        "method": report.search.get("method", "not searched"),
        "sparsity": report.sparsity["achieved"],
        "verdict": None if verdict is None else {
            **asdict(verdict), "is_share": verdict.is_share,
            "less_is_better": verdict.metric in LESS_IS_BETTER,
        },
        "metrics": _metrics(report),
        "layers": [dict(layer) for layer in report.layers],
        "sizes": [{"format": name, "bytes": size} for name, size in report.sizes.items()],
        "warnings": list(report.warnings),
        "expectations": list(report.expectations),
        "skipped": [{"name": name, "reason": why} for name, why in report.skipped.items()],
        "recipe": yaml.safe_dump(_plain(report.recipe), sort_keys=False, allow_unicode=True),
    }  # fmt: skip


def _metrics(report: Report) -> list[dict[str, Any]]:
    rows = [
        {"model": name, "control": False, "values": values or {}}
        for name, values in report.metrics.items()
    ]
    return rows + [
        {"model": name, "control": True, "values": values or {}}
        for name, values in report.controls.items()
    ]


def _of_masks(ticket: Ticket, report: Report) -> dict[str, Any]:
    """Images and histograms of some layers."""
    names = chosen_layers(report.layers)
    made, note = histograms(ticket, names)
    return {
        "images": [mask_image(name, ticket.masks[name]).to_dict() for name in names],
        "image_note": "",
        "histograms": [entry.to_dict() for entry in made],
        "histogram_note": note,
    }


def _curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Series of step and value; long ones as means of equal parts."""
    numbers = [
        {key: value for key, value in record.items() if isinstance(value, int | float)}
        for record in history
    ]
    curves = {
        title: _thinned([[n["index"], n[key]] for n in numbers if {"index", key} <= n.keys()])
        for key, title in _CURVES.items()
    }
    curves["sparsity"] = _thinned(
        [[n["index"], 1 - n["density"]] for n in numbers if {"index", "density"} <= n.keys()]
    )
    curves["held-out loss"] = [
        [n["index"], n["held_out"]] for n in numbers if {"index", "held_out"} <= n.keys()
    ]
    return {title: series for title, series in curves.items() if series}


def _thinned(series: list[list[float]]) -> list[list[float]]:
    count = min(_POINTS, len(series))
    parts = [
        series[i * len(series) // count : (i + 1) * len(series) // count] for i in range(count)
    ]
    return [
        [part[0][0], float(f"{sum(value for _, value in part) / len(part):.6g}")] for part in parts
    ]


def _code(markdown: list[str]) -> str:
    return "\n".join(line for line in markdown if not line.startswith("```"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _seen(value: Any) -> Any:
    """The same with every word as `visible` shows it, but for the line breaks of code."""
    if isinstance(value, str):
        return "\n".join(visible(line) for line in value.split("\n"))
    if isinstance(value, Mapping):
        return {visible(key): _seen(entry) for key, entry in value.items()}
    return [_seen(entry) for entry in value] if isinstance(value, list | tuple) else value
