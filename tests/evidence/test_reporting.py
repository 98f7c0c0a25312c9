"""The report of a ticket: order, counts, warnings and what it promises of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slt_compress
from slt_compress.evidence.reporting import Report
from slt_compress.gates import Magnitude

WIDTH = 12


def deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(12)))


def loss_fn(module: nn.Module, batch: Tensor) -> Tensor:
    return F.mse_loss(module(batch), batch)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    net = deep()
    with torch.no_grad():
        for layer in list(net)[:8]:
            assert isinstance(layer, nn.Linear)
            layer.weight[1] = 0.0  # the least magnitudes: the row is removed whole
    ticket = slt_compress.search(
        net,
        [torch.ones(4, WIDTH)] * 3,
        loss_fn=loss_fn,
        method=Magnitude(),
        budget=slt_compress.Budget(density=0.5),
        out=tmp_path_factory.mktemp("report") / "ticket",
    )
    return slt_compress.report(ticket.path)


def test_layers_come_in_the_order_of_the_model(report: Report) -> None:
    names = [layer["name"] for layer in report.layers]
    assert names == [f"{index}.weight" for index in range(12)]


def test_both_denominators_are_exact(report: Report) -> None:
    gated, parameters = 12 * WIDTH * WIDTH, 12 * WIDTH * (WIDTH + 1)
    found = report.sparsity
    assert (found["kept"], found["gated"], found["parameters"]) == (gated // 2, gated, parameters)
    assert found["achieved"] == found["target"] == 0.5
    assert found["achieved_parameters"] == gated / 2 / parameters
    assert sum(layer["kept"] for layer in report.layers) == gated // 2


def test_empty_rows_are_named_but_not_endlessly(report: Report) -> None:
    rows = [line for line in report.warnings if "rows" in line]
    assert len(rows) == 6
    assert rows[0].startswith("0.weight: 1 of 12 rows")
    assert rows[-1] == "3 more layers have empty rows"


def test_the_promised_size_is_that_of_the_tensors(report: Report) -> None:
    assert report.sizes["dense"] == 4 * report.sparsity["parameters"]
    # values, u8 columns, 13 u8 offsets (72 fit in a byte), 2 sizes a site; biases as they are
    site = [4 * layer["kept"] + layer["kept"] + 13 + 16 for layer in report.layers]
    assert report.sizes["sparse-csr"] == sum(site) + 4 * 12 * WIDTH
    assert any("auto format is smaller" in line for line in report.expectations)
    assert any('runtime="auto"' in line for line in report.expectations)


def test_a_report_comes_back_from_its_own_json(report: Report, tmp_path: Path) -> None:
    again = type(report).from_dict(report.to_dict(), tmp_path, slt_compress.SltError)
    assert again == report


def more_than_all(content: Any, part: str) -> Any:
    """A report that keeps more than there is, which a table would draw as wide as it says."""
    if part == "layer":
        content["layers"][0]["kept"] = 10**12
    elif part == "model":
        content["sparsity"]["kept"] = content["sparsity"]["gated"] + 1
    else:
        content["sparsity"]["units"] = {"kept": 3, "gated": 2}
    return content


@pytest.mark.parametrize("part", ["layer", "model", "units"])
def test_nothing_keeps_more_than_there_is(report: Report, part: str, tmp_path: Path) -> None:
    content = more_than_all(report.to_dict(), part)
    with pytest.raises(slt_compress.SltError, match="damaged"):
        Report.from_dict(content, tmp_path, slt_compress.SltError)


@pytest.mark.parametrize("search", [None, [], {"examples": None}])
def test_facts_on_the_search_are_facts(report: Report, search: object, tmp_path: Path) -> None:
    content = {**report.to_dict(), "search": search}
    with pytest.raises(slt_compress.SltError, match="damaged"):
        Report.from_dict(content, tmp_path, slt_compress.SltError)
