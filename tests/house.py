"""The rooms of the package, the imports between them, and a drawing of both.

    python -m tests.house docs/house.svg      # or `make map`

The drawing is made from the imports. An arrow points from a room to one that it imports; it is left
out if a longer way along other arrows leads there too. Every room may import `errors`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import slt_compress

PACKAGE = Path(slt_compress.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Bottom row first. A room imports lower rows only, and itself; rooms in one row do not meet.
ROOMS = (
    "errors masks",
    "storage",
    "anatomy",
    "sites",
    "gates checkpoints",
    "data artifacts tickets",
    "runtime",
    "evidence",
    "searching exporting pages",
    "api",
    "__init__",
    "cli",
    "__main__",
)
ROW_OF = {name: row for row, names in enumerate(ROOMS) for name in names.split()}

# Of the drawing, in pixels.
_WIDTH, _ROW, _TOP = 640, 66, 24
_BOX_WIDTH, _BOX_HEIGHT = 120, 34


def room_of(path: Path) -> str:
    """The room, or the module of the top level, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    """The dotted name of a file; a room's own name is that of its `__init__.py`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import from this package in a tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "slt_compress":
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            if (node.module or "").split(".")[0] == "slt_compress":
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if alias.name != "__version__":
                        yield node.lineno, inner if inner in MODULES else str(node.module)


def room_imports() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports."""
    needs: dict[str, set[str]] = {room: set() for room in ROW_OF}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        needs[room_of(path)] |= {room_of(MODULES[target]) for _, target in imports(tree)}
    return {room: others - {room} for room, others in needs.items()}


def shortened(needs: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The imports without those that follow from others (the transitive reduction)."""

    def reached(room: str) -> set[str]:
        return needs[room].union(*map(reached, needs[room]))

    return {
        room: others - set[str]().union(*map(reached, others)) for room, others in needs.items()
    }


def drawing() -> str:
    """The house as SVG: a row of boxes for each row of rooms, the highest row on top."""
    places = dict(_places())
    needs = room_imports()
    for others in needs.values():
        others.discard("errors")
    height = _TOP + len(ROOMS) * _ROW
    arrows = [
        _arrow(places[room], places[other])
        for room, others in sorted(shortened(needs).items())
        for other in sorted(others)
    ]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#666"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        *arrows,
        *(_box(name, *place) for name, place in places.items()),
        "</svg>\n",
    ])  # fmt: skip


def _places() -> Iterator[tuple[str, tuple[int, int]]]:
    """The middle of the box of every room."""
    for row, names in enumerate(reversed(ROOMS)):
        row_names = names.split()
        for index, name in enumerate(row_names):
            step = _WIDTH // len(row_names)
            yield name, (step // 2 + index * step, _TOP + row * _ROW + _BOX_HEIGHT // 2)


def _box(name: str, x: int, y: int) -> str:
    left, top = x - _BOX_WIDTH // 2, y - _BOX_HEIGHT // 2
    return (
        f'<rect x="{left}" y="{top}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="5" '
        f'fill="#eef3fa" stroke="#456"/><text x="{x}" y="{y + 5}" text-anchor="middle">{name}'
        "</text>"
    )


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """A curve to the upper edge of a box: from the lower edge of one in the row above, else from
    the side of the other box, so that it passes the rows between them.
    """
    (x0, y0), (x1, y1) = start, end
    y1 -= _BOX_HEIGHT // 2
    middle = (y0 + y1) // 2
    if y1 - y0 <= _ROW:
        y0 += _BOX_HEIGHT // 2
        curve = f"{x0} {middle} {x1} {middle}"
    else:
        side = 1 if x1 >= x0 else -1
        x0, x1 = x0 + side * _BOX_WIDTH // 2, x1 - (side if x1 != x0 else -1) * _BOX_WIDTH // 3
        outer = max(x0, x1) + _BOX_WIDTH // 2 if side > 0 else min(x0, x1) - _BOX_WIDTH // 2
        curve = f"{outer} {y0} {outer if side * (x1 - x0) < 0 else x1} {middle}"
    return (
        f'<path d="M{x0} {y0}C{curve} {x1} {y1}" fill="none" stroke="#666" marker-end="url(#tip)"/>'
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawing(), encoding="utf-8")
