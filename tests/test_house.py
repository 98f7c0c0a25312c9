"""The map in CONTRIBUTING.md is that of the code: drawing, table of rooms, walks, named files."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from house import PACKAGE, ROW_OF, drawing, room_imports, shortened

ROOT = PACKAGE.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WALKS = (
    "From a name to a module", "From a data spec to a batch", "From a score to bytes",
    "From an artifact to logits", "From a ticket to its proof",
)  # fmt: skip


def section(title: str) -> str:
    """The text below a heading, up to the next one."""
    match = re.search(rf"^#+ {re.escape(title)}$(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[1]


def functions_of(path: Path) -> set[str]:
    """Names of all functions and methods of a file, methods as `Class.method` too."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
            names |= {f"{node.name}.{inner.name}" for inner in methods}
    return names


def test_the_drawing_is_current() -> None:
    committed = (ROOT / "docs" / "house.svg").read_text(encoding="utf-8")
    assert committed == drawing(), "run `make map`"


def test_the_drawing_has_every_room_and_loses_no_import() -> None:
    needs = room_imports()
    short = shortened(needs)

    def reached(room: str) -> set[str]:
        return short[room].union(*map(reached, short[room]))

    for room, others in needs.items():
        assert others <= reached(room)
        assert f">{room}</text>" in drawing()


def test_a_direct_import_that_follows_from_others_is_left_out() -> None:
    needs = {"a": {"b", "c"}, "b": {"c"}, "c": set[str]()}
    assert shortened(needs) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_the_table_names_every_room_once() -> None:
    named = re.findall(r"^\| `(\w+)` \|", section("The map"), re.MULTILINE)
    assert sorted(named) == sorted(ROW_OF)


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_names_functions_that_exist(title: str) -> None:
    stops = re.findall(r"^\d+\. `([\w/]+\.py)` → `([\w.]+)`: ", section(title), re.MULTILINE)
    assert len(stops) >= 4
    assert len(stops) == len(re.findall(r"^\d+\. ", section(title), re.MULTILINE))
    for file, function in stops:
        assert function in functions_of(PACKAGE / file), f"{file} has no {function}"


def test_every_named_file_exists() -> None:
    for name in re.findall(r"`((?:slt_compress|tests|docs|benchmarks)/[\w./-]+)`", PAGE):
        assert (ROOT / name).exists(), name
