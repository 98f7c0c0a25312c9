"""README and docs: every block runs as written, every link has an end, no page is left out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pico
import pytest
import transformers
import yaml
from data_sets import image_table
from doc_blocks import PAGES, ROOT
from hub import Hub
from recipe_page import recipe_page

SYNSETS = ["n01532829", "n01558993", "n01704323"]
DOCS = [page for page in PAGES if page.parent != ROOT]
_LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)
CARD = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: train, path: train.txt}
  - {split: test, path: test.txt}
---
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Pico models and data sets under the names that the pages use."""
    root = tmp_path_factory.mktemp("hub")
    config = transformers.BertConfig(**pico.SMALL, **pico.TEXT, intermediate_size=32)
    transformers.BertModel(config).save_pretrained(root / "minilm")
    for split, count in (("train", 24), ("test", 9), ("validation", 3)):
        for name, classes in (("mini", SYNSETS), ("cifar", pico.CLASSES)):
            table = root / name / "data" / f"{split}-00000-of-00001.parquet"
            table.parent.mkdir(parents=True, exist_ok=True)
            image_table(table, count, classes)
    prose = pico.save_prose(root / "wikitext")
    for split in ("train", "test"):  # some windows of 512 tokens
        path = prose / f"{split}.txt"
        path.write_text(path.read_text() * 40)
    (prose / "README.md").write_text(CARD)
    classes = [f"LABEL_{index}" for index in range(1000)]
    with Hub() as hub:
        hub.add_model("google/vit-base-patch16-224", pico.save_vit(root / "vit", classes))
        hub.add_model("HuggingFaceTB/SmolLM2-135M", pico.save_llama(root / "llama", length=512))
        hub.add_model("textattack/bert-base-uncased-SST-2", pico.save_bert(root / "bert"))
        hub.add_model(
            "sentence-transformers/all-MiniLM-L6-v2", pico.save_tokenizer(root / "minilm")
        )
        hub.add_dataset("timm/mini-imagenet", root / "mini")
        hub.add_dataset("uoft-cs/cifar10", root / "cifar")
        hub.add_dataset("stanfordnlp/sst2", pico.save_reviews(root / "reviews"))
        hub.add_dataset("Salesforce/wikitext", prose)
        yield hub


@pytest.fixture(scope="module")
def failures(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What failed, by page; all pages run in one process, which imports once."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {
        **kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.doc_blocks", *map(str, PAGES)], env=environment, cwd=ROOT,
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs_as_written(failures: dict[str, list[str]], page: Path) -> None:
    assert failures[str(page)] == []


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as mkdocs and hubs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    plain = (re.sub(r"[^\w\- ]", "", head.replace("`", "")).strip().lower() for head in heads)
    return {re.sub(r"[ \-]+", "-", head) for head in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_has_an_end(page: Path) -> None:
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        end = (page.parent / path).resolve() if path else page
        assert end.exists(), f"{page.name} links to {target}"
        if page in DOCS:
            assert end.is_relative_to(ROOT / "docs"), f"{target} is outside the site"
        if anchor and end.suffix == ".md":
            assert anchor in anchors(end), f"{page.name} links to {target}"


def test_the_site_has_every_page_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for inner in entry.values():
                yield from pages(inner)
        elif isinstance(entry, list):
            for inner in entry:
                yield from pages(inner)

    listed = list(pages(site["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS)


def test_every_public_name_is_in_the_reference() -> None:
    import slt_compress

    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: slt_compress\.(?:[\w.]+\.)?(\w+)$", text, re.M))
    assert documented == set(slt_compress.__all__)


def test_the_page_of_recipes_is_that_of_the_recipes() -> None:
    assert (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8") == recipe_page()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorial" / "index.html").is_file()
