"""The offline page: small, quick, without a request or an error, with every section filled."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pages_browser
import pytest
import torch
from pages_browser import visit

import slt_compress
from slt_compress.cli.report_view import print_report
from slt_compress.cli.screen import Screen
from slt_compress.errors import SltError
from slt_compress.masks import Masks
from slt_compress.pages.content import page_content
from slt_compress.pages.histograms import histogram
from slt_compress.pages.images import LAYERS, chosen_layers, mask_image
from slt_compress.pages.writing import page, write_page
from slt_compress.searching.recipes import parse_recipe
from slt_compress.tickets import Extra, SiteFacts, TicketContent, write_ticket

SECTIONS = ("verdict", "metrics", "layers", "masks", "weights", "curves", "sizes", "recipe",
            "loading", "skipped")  # fmt: skip
needs_chromium = pytest.mark.skipif(pages_browser.CHROMIUM is None, reason="needs Chromium")
HOSTILE = "</script><img src=https://example.org/x onerror=console.error(1)><!--\u202eb"


def searched(out: Path, **changes: object) -> Path:
    content = {"init": "random", "training": {"steps": 6, "batch_size": 16, "selections": 2},
               "evaluation": {"limit": 60}, **changes}  # fmt: skip
    recipe = parse_recipe(content)
    return slt_compress.search("lenet-300-100", "digits", recipe=recipe, out=out).path


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("pages")
    return [searched(root / "nine", target_sparsity=0.9),
            searched(root / "half", target_sparsity=0.5, method="random")]  # fmt: skip


def made_ticket(path: Path, names: list[str], *, source: str = "big", size: int = 24) -> Path:
    """A ticket of many sites, written without a search."""
    chance = torch.Generator().manual_seed(0)
    masks = Masks({name: torch.rand(size, size, generator=chance) < 0.1 for name in names})
    content = TicketContent(
        origin={"kind": "module", "source": source, "family": "module", "task": "features",
                "revision": None},
        masks=masks, gains={}, buffers={}, stored={}, origin_tensors=None,
        budget={"density": 0.1, "pattern": "unstructured"},
        recipe={"method": {"name": "relaxed"}, "pattern": "unstructured"},
        metrics={"dense": {"loss": 1.0}, "hard": {"loss": 1.5}, "soft": None}, controls={},
        skipped={f"{name}.bias": "bias" for name in names[:5]}, weights_hash="0" * 64,
        parameters=masks.total, units=None, probe=None,
        history=[{"index": i, "loss": 1.0 / (i + 1), "density": 0.5} for i in range(3000)],
        sites={name: SiteFacts(index=i, dtype="float32") for i, name in enumerate(names)},
        scores=None, card="", extra=Extra(environment={}, dense_nbytes=4 * masks.total),
    )  # fmt: skip
    return write_ticket(path, content, run={"seconds": 1.0}).path


def test_a_page_of_three_hundred_layers_is_small_and_quick(tmp_path: Path) -> None:
    names = [f"model.layers.{i // 6}.part{i % 6}.weight" for i in range(300)]
    ticket = made_ticket(tmp_path / "t", names)
    began = time.process_time()
    size = write_page([ticket], tmp_path / "page.html")
    assert time.process_time() - began < 3
    assert size == (tmp_path / "page.html").stat().st_size < 3 << 20


def test_a_report_of_three_hundred_layers_is_quick(tmp_path: Path) -> None:
    names = [f"model.layers.{i // 6}.part{i % 6}.weight" for i in range(300)]
    ticket = made_ticket(tmp_path / "t", names)
    for full in (False, True):
        out = io.StringIO()
        began = time.process_time()
        report = slt_compress.report(ticket)
        print_report(Screen(file=out, width=80), report, ticket, None, full=full)
        assert time.process_time() - began < 1
        assert len(re.findall(r"part3\.weight +24", out.getvalue())) == (50 if full else 1)


def test_the_content_is_that_of_the_report(tickets: list[Path]) -> None:
    content, report = page_content(tickets[0]), slt_compress.report(tickets[0])
    assert [layer["kept"] for layer in content["layers"]] == [row["kept"] for row in report.layers]
    assert content["sparsity"] == report.sparsity["achieved"]
    assert content["verdict"]["hard"] == (report.metrics["hard"] or {})["accuracy"]
    assert len(content["curves"]["loss"]) == 6
    assert {image["name"] for image in content["images"]} == {row["name"] for row in report.layers}
    for entry, layer in zip(content["histograms"], report.layers, strict=True):
        assert sum(entry["kept"]) == layer["kept"]
        assert sum(entry["kept"]) + sum(entry["removed"]) == layer["total"]


def test_an_export_has_a_page_too(tickets: list[Path], tmp_path: Path) -> None:
    artifact = slt_compress.export(tickets[0], format="auto", out=tmp_path / "auto")
    content = page_content(artifact.path)
    assert content["kind"] == "artifact"
    assert 'slt_compress.load("auto")' in content["loading"]
    assert "page of its ticket" in content["image_note"]


def test_a_page_holds_no_address_that_a_browser_would_fetch(tickets: list[Path]) -> None:
    text = page([page_content(tickets[0])])
    ours = re.sub(r"<script>\n// https://d3js.org.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", ours)
    assert "default-src 'none'" in text


def test_words_from_outside_do_nothing(tmp_path: Path) -> None:
    ticket = made_ticket(tmp_path / "t", [f"{HOSTILE}.weight"], source=HOSTILE)
    text = page([page_content(ticket)])
    assert HOSTILE not in text
    assert "\u202e" not in text
    data = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert data is not None
    assert "onerror" in json.loads(data[1])["tickets"][0]["source"]


def test_a_file_that_cannot_be_written(tickets: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SltError, match="is a folder"):
        write_page(tickets[:1], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SltError, match="cannot be written"):
        write_page(tickets[:1], tmp_path / "file" / "page.html")


@pytest.mark.parametrize("shape", [(7,), (3, 5), (500, 3), (3, 1000), (8, 4, 3, 3), (1, 1)])
def test_the_ink_of_an_image_is_the_density(shape: tuple[int, ...]) -> None:
    import base64
    import io

    from PIL import Image

    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3
    image = mask_image("x", mask)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.png))))
    assert pixels.shape[0] <= 160
    assert pixels.shape[1] <= 160
    assert image.rows * image.columns == mask.numel()
    assert abs((1 - pixels / 255).mean() - mask.float().mean()) < 0.02


def test_layers_are_chosen_from_all_over() -> None:
    layers = [{"name": f"l{i}", "shape": [1], "total": 1, "kept": 1, "flips": 0,
               "sparsity": 0.99 if i == 37 else 0.5} for i in range(100)]  # fmt: skip
    chosen = chosen_layers(layers)  # type: ignore[arg-type]
    assert len(chosen) == LAYERS
    assert {"l0", "l99", "l37"} <= set(chosen)


def test_a_histogram_leaves_nothing_out() -> None:
    weight = torch.cat([torch.randn(5000, generator=torch.Generator().manual_seed(0)),
                        torch.tensor([1e6, -1e6])])  # fmt: skip
    mask = torch.arange(5002) % 3 == 0
    made = histogram("x", weight, mask)
    assert sum(made.kept) == int(mask.sum())
    assert sum(made.removed) == int((~mask).sum())
    assert made.edges[-1] < 10
    zeros = histogram("x", torch.zeros(4), torch.ones(4, dtype=torch.bool))
    assert sum(zeros.kept) == 4


def test_a_module_of_ones_own_has_no_histograms(tmp_path: Path) -> None:
    content = page_content(made_ticket(tmp_path / "t", ["a.weight", "b.weight"]))
    assert content["histograms"] == []
    assert "module of your own" in content["histogram_note"]


@needs_chromium
def test_in_a_browser_each_section_is_drawn(tickets: list[Path], tmp_path: Path) -> None:
    write_page(tickets, tmp_path / "page.html")
    seen = visit(tmp_path / "page.html", tmp_path / "profile")
    assert seen.console == ()
    assert seen.requests == ()
    assert 'data-drawn="true"' in seen.html
    for section in SECTIONS:
        assert len(seen.text(section)) > 40, section
    assert "nine" in seen.text("comparison")
    assert "half" in seen.text("comparison")
    assert "fc1.weight" in seen.text("masks")
    assert seen.html.count("<svg") >= 8
    labels = re.findall(r"<label for=\"([\w-]+)\"", seen.html)
    assert all(f'id="{label}"' in seen.html for label in labels)
    controls = re.findall(r"<(?:input|select) id=\"([\w-]+)\"", seen.html)
    assert set(controls) == set(labels)


CLICKS = """
const set = (id, value) => { const field = document.getElementById(id); field.value = value;
  field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change')); };
set('which', '1'); set('layer-filter', 'FC2'); set('layer-order', 'density');
"""


@needs_chromium
def test_in_a_browser_one_can_filter_sort_and_change(tickets: list[Path], tmp_path: Path) -> None:
    write_page(tickets, tmp_path / "page.html")
    seen = visit(tmp_path / "page.html", tmp_path / "profile", script=CLICKS, size=(390, 800))
    assert seen.console == ()
    assert seen.text("title") == "half"
    assert "1 of 3 layers" in seen.text("layers")
    assert "fc1.weight" not in seen.text("layers")
    assert "no curves" in seen.text("curves")


@needs_chromium
def test_in_a_browser_hostile_words_are_words(tmp_path: Path) -> None:
    names = [f"{HOSTILE}.weight", "a.weight"]
    write_page([made_ticket(tmp_path / "t", names, source=HOSTILE)], tmp_path / "page.html")
    seen = visit(tmp_path / "page.html", tmp_path / "profile")
    assert seen.console == ()
    assert seen.requests == ()
    assert "onerror" in seen.text("layers")
    assert '<img src="https' not in seen.html
