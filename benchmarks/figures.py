"""Draw the figures of docs/method.md: the gate, and the way from weights to a ticket.

python benchmarks/figures.py docs
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP = 640, 300, 70, 30
COLOURS = ("#b4530a", "#1d6fa5", "#2f7d32")
STEPS = (
    ("frozen weights", "w, never changed"), ("a score per weight", "mu, trained"),
    ("a gate per weight", "open or shut, with noise"), ("an exact mask", "the highest scores"),
    ("a ticket", "masks and evidence"),
)  # fmt: skip


def open_share(distance: float, sigma: float) -> float:
    """P(z > 1/2) of a gate whose mu - tau is `distance`."""
    return 0.5 * (1 + math.erf((distance - 0.5) / sigma / math.sqrt(2)))


def gate_figure() -> str:
    """How likely a gate is open, at three widths of the noise."""
    right, bottom = WIDTH - 30, HEIGHT - 50

    def place(distance: float, share: float) -> str:
        x = LEFT + (distance + 0.5) / 2 * (right - LEFT)
        return f"{x:.1f},{bottom - share * (bottom - TOP):.1f}"

    lines = [_text(LEFT - 10, bottom, "0", "end"), _text(LEFT - 10, TOP + 5, "1", "end"),
             _text((LEFT + right) / 2, HEIGHT - 12, "score less threshold, mu - tau"),
             _text(LEFT, 18, "chance that the gate is open", "start"),
             _text((LEFT + right) / 2, bottom + 18, "1/2", size=12)]  # fmt: skip
    lines.append(f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#666"/>')
    for row, (sigma, colour) in enumerate(zip((0.5, 0.25, 0.1), COLOURS, strict=True)):
        points = " ".join(place(i / 50 - 0.5, open_share(i / 50 - 0.5, sigma)) for i in range(101))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" '
                     'stroke-width="2"/>')  # fmt: skip
        when = ("at the start", "later", "at the end")[row]
        label = f"sigma {sigma}, {when}"
        lines.append(_text(right - 4, bottom - 90 + 20 * row, label, "end", colour))
    return _svg(HEIGHT, lines, "How likely a gate is open, by its score and the width of the noise")


def path_figure() -> str:
    """The steps of a search, from left to right."""
    lines, each, wide = [], WIDTH / len(STEPS), 112
    for place, (name, what) in enumerate(STEPS):
        middle = each * (place + 0.5)
        lines.append(f'<rect x="{middle - wide / 2:.0f}" y="30" width="{wide}" height="46" rx="6" '
                     'fill="#f4f1ea" stroke="#666"/>')  # fmt: skip
        lines.append(_text(middle, 50, name, size=11))
        lines.append(_text(middle, 66, what, size=9, colour="#555"))
        if place:
            start = middle - each + wide / 2
            lines.append(f'<path d="M{start:.0f} 53H{middle - wide / 2 - 4:.0f}" stroke="#666" '
                         'marker-end="url(#tip)"/>')  # fmt: skip
    return _svg(106, lines, "From frozen weights over scores and gates to a mask and a ticket")


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#222",
          size: int = 14) -> str:  # fmt: skip
    return (f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}" '
            f'font-size="{size}">{text}</text>')  # fmt: skip


def _svg(height: int, lines: list[str], title: str) -> str:
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img">',
        f"<title>{title}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0 0L8 4L0 8z" fill="#666"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *lines, "</svg>\n",
    ])  # fmt: skip


def main(folder: Path) -> None:
    """Write both figures."""
    (folder / "method-gate.svg").write_text(gate_figure(), encoding="utf-8")
    (folder / "method-path.svg").write_text(path_figure(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
