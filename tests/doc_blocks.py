"""Run the blocks of README and docs as they stand, in one process, and tell which failed.

    HF_ENDPOINT=… python -m tests.doc_blocks PAGE ...

Every page has an empty folder and a namespace of its own. `slt-compress` commands run through the
entry point of the command line, Python blocks by `exec`, YAML blocks are parsed as recipes. Other
programs are not run: it is checked that what they name is there. Only the number of steps of a
search is cut, so that a test takes seconds; see `STEPS`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
STEPS = 3
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.M | re.S)
_COMMAND = re.compile(r"^\$ ((?:[^\n]*\\\n)*[^\n]*)", re.M)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block of a page: its language, its first line in the page, and its text."""

    kind: str
    line: int
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(kind=match[2], line=text[: match.start()].count("\n") + 2,
              text=re.sub(f"^{match[1]}", "", match[3], flags=re.M))
        for match in _FENCE.finditer(text)
    ]  # fmt: skip


def commands_of(block: Block) -> list[str]:
    """The commands of a console block; what is between them is output."""
    return [command.replace("\\\n", " ") for command in _COMMAND.findall(block.text)]


def _run_block(block: Block, scope: dict[str, Any]) -> None:
    if block.kind == "console":
        for command in commands_of(block):
            _run_command(shlex.split(command, comments=True))
    elif block.kind == "python":
        exec(compile(block.text, f"block at line {block.line}", "exec"), scope)
    elif block.kind == "yaml":
        import yaml

        from slt_compress.searching.recipes import parse_recipe

        parse_recipe(yaml.safe_load(block.text))
    elif block.kind not in ("text", "json"):
        raise ValueError(f"a block of the kind {block.kind!r} is not known here")


def _run_command(words: list[str]) -> None:
    if words[0] in ("torchrun", "accelerate"):
        words = ["slt-compress", *words[words.index("slt_compress") + 1 :]]
    if words[0] == "slt-compress":
        _run_slt(words[1:])
        return
    for name in _named(words):
        if not name.exists():
            raise FileNotFoundError(f"{' '.join(words)}: there is no {name}")


def _run_slt(arguments: list[str]) -> None:
    from slt_compress.cli import main

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(arguments)
    except SystemExit as left:
        if left.code not in (0, None):
            raise RuntimeError(f"slt-compress {' '.join(arguments)}: {said.getvalue()}") from None


def _named(words: list[str]) -> Iterator[Path]:
    """Files of this project that a command names: scripts, and what a make target needs."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    if words[0] == "make":
        for target in words[1:]:
            if f"\n{target}:" not in makefile:
                yield ROOT / "Makefile" / target
    elif words[0] in ("pip", "sh", "python") or words[0].endswith(("/pip", "/python")):
        yield from (ROOT / word for word in words[1:] if word.endswith((".py", ".sh")))
        extras = re.findall(r"slt-compress\[(\w+)\]", " ".join(words))
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        yield from (ROOT / extra for extra in extras if f"\n{extra} = [" not in project)
    else:
        yield ROOT / f"a known program, not {words[0]}"


def run_page(page: Path, folder: Path) -> list[str]:
    """Run a page in an empty folder; what failed, a text each."""
    os.chdir(folder)
    scope: dict[str, Any] = {"__name__": "__main__"}
    failed = []
    for block in blocks_of(page):
        try:
            _run_block(block, scope)
        except Exception:
            reason = traceback.format_exc(limit=-3)
            failed.append(f"{page.relative_to(ROOT)}:{block.line}: {reason}")
    return failed


def _cut_steps() -> None:
    from slt_compress.searching.settings import Training

    whole = Training.total_steps
    Training.total_steps = lambda self, batches: min(STEPS, whole(self, batches))  # type: ignore[method-assign]


def main(pages: list[str]) -> None:
    """Run pages, and print what failed as JSON."""
    _cut_steps()
    found = {}
    for page in pages:
        with tempfile.TemporaryDirectory() as folder:
            found[page] = run_page(Path(page), Path(folder))
            os.chdir(ROOT)
    sys.__stdout__.write(json.dumps(found))  # type: ignore[union-attr]


if __name__ == "__main__":
    main(sys.argv[1:])
